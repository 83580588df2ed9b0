"""The queue: the teacher's features of the last pairs, further negatives for the contrast."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FeatureQueue(nn.Module):
    """The last ``size`` pairs' features, the same on every rank because only gathered features are pushed.

    It starts with random directions (official code). ``image``, ``text``: [size, D]; the ids name image and caption of a
    row, -1 for the random ones. Any queue size, any number of rows pushed.
    """

    image: Tensor
    text: Tensor
    image_ids: Tensor
    text_ids: Tensor
    pointer: Tensor

    def __init__(self, size: int, width: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name in ("image", "text"):
            self.register_buffer(name, F.normalize(torch.randn(size, width, generator=generator), dim=1))
            self.register_buffer(f"{name}_ids", torch.full((size,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, image: Tensor, text: Tensor, image_ids: Tensor, text_ids: Tensor) -> None:
        """Write rows [n, D] over the oldest ones, wrapping around; of more rows than the queue holds, the last remain."""
        size = len(self.image)
        if size == 0:
            return
        skipped = max(0, len(image) - size)
        places = (self.pointer + torch.arange(skipped, len(image), device=image.device)) % size
        self.image[places] = image[skipped:].to(self.image.dtype)
        self.text[places] = text[skipped:].to(self.text.dtype)
        self.image_ids[places], self.text_ids[places] = image_ids[skipped:], text_ids[skipped:]
        self.pointer.copy_((self.pointer + len(image)) % size)
