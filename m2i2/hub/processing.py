"""Images and questions into what the models take, as in our own evaluation."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import tokenizers
import torch
import torch.nn.functional as F
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

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        padding: bool | str = True,
        truncation: bool = True,
        max_length: int | None = None,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """``pixel_values`` [B, 3, H, W] of images, ``input_ids`` and ``attention_mask`` [B, L] of questions.

        An image is a file, bytes, a PIL image, an array or a tensor (see `m2i2.data.images.picture.open_picture`); several are a
        list, or an array or tensor of four dimensions. Texts are cut at ``max_length`` tokens (default and bound: the model's
        own ``max_tokens``) and padded to the longest one, or with ``padding="max_length"`` to ``max_length``.
        ``return_tensors``: "pt" or "np". ValueError for another value of these; TypeError for an argument that is not known.
        """
        if kwargs:
            raise TypeError(
                f"M2I2Processor has no argument {next(iter(kwargs))!r}; it takes images, text, padding, truncation, max_length "
                f"and return_tensors."
            )
        if return_tensors not in ("pt", "np"):
            raise ValueError(f"return_tensors={return_tensors!r}; M2I2Processor gives PyTorch tensors ('pt') or arrays ('np').")
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding={padding!r}; it is True, False, 'longest' or 'max_length'.")
        data: dict[str, Any] = {}
        if images is not None:
            several = several_images(images)
            transform = EvaluationTransform(size=self.image_size)
            pictures: list[Image.Image] = [open_image(image) for image in ([images] if several is None else several)]
            data["pixel_values"] = normalise(torch.stack([transform.of_image(picture) for picture in pictures]))
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            data["input_ids"], data["attention_mask"] = self._tokens(texts, padding, truncation, max_length)
        if return_tensors == "np":
            data = {name: tensor.numpy() for name, tensor in data.items()}
        return BatchFeature(data)

    def _tokens(
        self, texts: Sequence[str], padding: bool | str, truncation: bool, max_length: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask [B, L]."""
        tokenizer, longest = self.own_tokenizer, min(max_length or self.max_tokens, self.max_tokens)
        cleaned = [clean_question(text, TEST_WORDS, self.normalisation) for text in texts]
        rows = [tokenizer.encode(text, longest if truncation else self.max_tokens + 1) for text in cleaned]
        lengths = {len(row) for row in rows}
        if max(lengths) > self.max_tokens:
            raise ValueError(f"A text has more than {self.max_tokens} tokens, which the model takes; leave truncation=True.")
        if padding in (False, "do_not_pad") and len(lengths) > 1:
            raise ValueError(f"Texts of {sorted(lengths)} tokens make no tensor without padding; leave padding=True.")
        ids, mask = pad_rows(rows, tokenizer.pad_id)
        more = longest - ids.shape[1] if padding == "max_length" else 0
        if more > 0:
            ids, mask = F.pad(ids, (0, more), value=tokenizer.pad_id), F.pad(mask, (0, more))
        return ids, mask


def several_images(images: Any) -> Sequence[Any] | None:
    """The images of a list, a tuple, or an array or tensor of four dimensions; None for one image."""
    return images if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4 else None


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
