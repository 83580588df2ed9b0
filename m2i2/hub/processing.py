"""Images and questions into what the models take, as in our own evaluation."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import tokenizers
import torch
from PIL import Image
from transformers import BatchFeature, BertTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from m2i2.data.images.transforms import EvaluationTransform, normalise
from m2i2.data.loading.padding import pad_rows
from m2i2.data.text.cleaning import TEST_WORDS, Normalisation, clean_question
from m2i2.data.text.tokenizer import Tokenizer, load_tokenizer
from m2i2.errors import M2I2Error, shown
from m2i2.files import read_object
from m2i2.inference.answering import open_image

_LARGEST = 1 << 16
"""Pixels or tokens."""


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

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers names the arguments that are in kwargs here
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Any:
        """The processor of a folder, or of a name on the hub (``revision``, ``token`` and the like as in transformers).

        Read are our own settings in ``processor_config.json`` and a tokenizer within `load_tokenizer`'s bounds. Nothing else that
        a folder may name (code under ``auto_map``, other tokenizers, models, templates) is followed, whatever
        ``trust_remote_code`` says. M2I2Error for what cannot be read.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = _from_hub(str(pretrained_model_name_or_path), kwargs)
        path = folder / "processor_config.json"
        stored = read_object(path, "processor's settings", " Save one with M2I2Processor.save_pretrained.")
        kinds = {"image_size": int, "max_tokens": int, "normalisation": str}
        values: dict[str, Any] = {name: kwargs.get(name, stored.get(name)) for name in kinds}
        for name, kind in kinds.items():
            if values[name] is None:
                del values[name]
            elif type(values[name]) is not kind or (kind is int and not 1 <= values[name] <= _LARGEST):
                raise M2I2Error(f"{path} has {name}={shown(values[name])}, which is not {kind.__name__} or out of range.")
        if values.get("normalisation", "official") not in get_args(Normalisation):
            raise M2I2Error(f"{path} has normalisation={shown(values['normalisation'])}, which is unknown.")
        tokenizer = BertTokenizer(tokenizer_object=load_tokenizer(folder).library_object)
        return cls(tokenizer, **values)

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


def _from_hub(name: str, kwargs: dict[str, Any]) -> Path:
    """The folder of a name on the hub, in the hub's cache: the files that are read here and no others."""
    from huggingface_hub import snapshot_download

    known = ("revision", "token", "cache_dir", "force_download", "local_files_only")
    try:
        files = ["processor_config.json", "tokenizer.json", "vocab.txt"]
        return Path(snapshot_download(name, allow_patterns=files, **{key: kwargs[key] for key in known if key in kwargs}))
    except Exception as e:
        reason = (str(e).splitlines() or [""])[0]
        raise M2I2Error(
            f"{name!r} is not a local folder and could not be downloaded from the Hugging Face hub ({type(e).__name__}: {reason}). "
            f"Without a connection, download it elsewhere (hf download {name} --local-dir FOLDER) and name that folder."
        ) from e
