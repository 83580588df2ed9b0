"""``config.json`` of a model folder: the architecture, in our own settings' words."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from m2i2.config import ObjectivesConfig, TextConfig, VisionConfig
from m2i2.data.text.cleaning import Normalisation
from m2i2.options import from_dict, to_dict


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
