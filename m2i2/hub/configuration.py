"""``config.json`` of a model folder: the architecture, in our own settings' words."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

from transformers import PreTrainedConfig

from m2i2.config import ObjectivesConfig, TextConfig, VisionConfig
from m2i2.data.text.cleaning import Normalisation
from m2i2.errors import M2I2Error, shown
from m2i2.files import read_object
from m2i2.options import from_dict, to_dict

_FOLLOWED = ("vision", "text", "objectives", "normalisation", "architectures", "model_type", "dtype", "torch_dtype")
"""Keys of a folder's file that mean something here. Others could name code, kernels or weights elsewhere: see `from_dict`."""
_SILENT = ("transformers_version", "_name_or_path", "_commit_hash")
_TYPES = ("float32", "float64", "float16", "bfloat16")


class M2I2Config(PreTrainedConfig):
    """Sections ``vision``, ``text`` and, of pretraining, ``objectives``: the fields of `m2i2.config`, checked like them."""

    model_type: ClassVar[str] = "m2i2"

    vision: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    objectives: dict[str, Any] | None = None
    normalisation: str = "official"

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision = to_dict(from_dict(VisionConfig, self.vision or {}))
        self.text = to_dict(from_dict(TextConfig, self.text or {}))
        self.objectives = to_dict(from_dict(ObjectivesConfig, self.objectives or {}))
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """From a folder's ``config.json``; ``kwargs`` are the caller's own, and all of them count.

        Of the file only the keys that describe our model are followed: another (``_attn_implementation`` may name a kernel to be
        fetched and run, ``auto_map`` code, ``quantization_config`` a library) is passed over with a warning. M2I2Error for a key
        of ours that is of another kind.
        """
        return super().from_dict(_followed(config_dict), **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike[str]) -> dict[str, Any]:
        """Read within our bounds; whatever version of transformers does not ask here asks `from_dict`."""
        return _followed(read_object(Path(json_file), "model's configuration"))

    @classmethod
    def of(
        cls,
        vision: VisionConfig,
        text: TextConfig,
        objectives: ObjectivesConfig | None = None,
        normalisation: Normalisation = "official",
    ) -> "M2I2Config":
        """From our settings."""
        return cls(
            vision=to_dict(vision),
            text=to_dict(text),
            objectives=to_dict(objectives or ObjectivesConfig()),
            normalisation=normalisation,
        )

    @property
    def sections(self) -> tuple[VisionConfig, TextConfig, ObjectivesConfig]:
        """As our settings."""
        vision = from_dict(VisionConfig, self.vision or {})
        return vision, from_dict(TextConfig, self.text or {}), from_dict(ObjectivesConfig, self.objectives or {})


def _followed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a folder's configuration that are followed, checked."""
    if passed_over := [name for name in values if name not in (*_FOLLOWED, *_SILENT)]:
        warnings.warn(f"Keys of the model's config.json that are not followed: {shown(passed_over)}.", stacklevel=3)
    found = {name: value for name, value in values.items() if name in _FOLLOWED}
    names = found.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise M2I2Error(f"The model's config.json has architectures={shown(names)}; a list of names was expected.")
    for key in ("dtype", "torch_dtype"):
        if key in found and str(found[key]).removeprefix("torch.") not in (*_TYPES, "None"):
            raise M2I2Error(f"The model's config.json has {key}={shown(found[key])}; it must be one of {', '.join(_TYPES)}.")
    if found.get("normalisation", "official") not in get_args(Normalisation):
        raise M2I2Error(f"The model's config.json has normalisation={shown(found['normalisation'])}.")
    return found
