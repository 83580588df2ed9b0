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
    def push(self, image: Tensor, text: Tensor, image_ids: Tensor, text_ids: Tensor, applied: Tensor | None = None) -> None:
        """Write rows [n, D] over the oldest ones, wrapping around; of more rows than the queue holds, the last remain.

        ``applied``: [] bool, whether to do it, for decisions that only the device knows; None means yes.
        """
        size = len(self.image)
        if size == 0:
            return
        skipped = max(0, len(image) - size)
        places = (self.pointer + torch.arange(skipped, len(image), device=image.device)) % size
        for kept, new in ((self.image, image), (self.text, text), (self.image_ids, image_ids), (self.text_ids, text_ids)):
            rows = new[skipped:].to(kept.dtype)
            kept[places] = rows if applied is None else torch.where(applied, rows, kept[places])
        moved = len(image) if applied is None else len(image) * applied
        self.pointer.copy_((self.pointer + moved) % size)
