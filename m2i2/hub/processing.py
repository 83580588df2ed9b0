"""Images and questions into what the models take, as in our own evaluation."""

from collections.abc import Sequence
from typing import Any

import tokenizers
import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from m2i2.data.images.transforms import EvaluationTransform, normalise
from m2i2.data.loading.loader import pad_rows
from m2i2.data.text.cleaning import TEST_WORDS, Normalisation, clean_question
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.inference.answering import open_image


class M2I2Processor(ProcessorMixin):
    """A BERT tokenizer, the image's size in pixels, and how questions are cleaned up."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_size: int = 384,
        max_tokens: int = 512,
        normalisation: Normalisation = "official",
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, **kwargs)
        self.image_size, self.max_tokens, self.normalisation = image_size, max_tokens, normalisation

    @property
    def own_tokenizer(self) -> Tokenizer:
        """The tokenizer as the rest of the code has it."""
        inner = self.tokenizer.backend_tokenizer
        return Tokenizer(tokenizers.Tokenizer.from_str(inner.to_str()), "of the processor")

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """``pixel_values`` [B, 3, H, W] of images, ``input_ids`` and ``attention_mask`` [B, L] of questions.

        An image is a file, bytes, a PIL image, an array or a tensor (see `m2i2.data.images.picture.open_picture`); several are a
        list, or an array or tensor of four dimensions.
        """
        if kwargs.pop("return_tensors", "pt") != "pt":
            raise ValueError("M2I2Processor gives PyTorch tensors: return_tensors='pt'.")
        if kwargs:
            raise TypeError(f"M2I2Processor has no argument {next(iter(kwargs))!r}; it takes images and text.")
        data: dict[str, Any] = {}
        if images is not None:
            batch = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
            several = images if batch else [images]
            transform = EvaluationTransform(size=self.image_size)
            pictures: list[Image.Image] = [open_image(image) for image in several]
            data["pixel_values"] = normalise(torch.stack([transform.of_image(picture) for picture in pictures]))
        if text is not None:
            tokenizer = self.own_tokenizer
            texts = [text] if isinstance(text, str) else text
            rows = [tokenizer.encode(clean_question(t, TEST_WORDS, self.normalisation), self.max_tokens) for t in texts]
            data["input_ids"], data["attention_mask"] = pad_rows(rows, tokenizer.pad_id)
        return BatchFeature(data)
