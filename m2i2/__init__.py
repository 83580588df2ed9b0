"""M2I2: self-supervised vision-language pretraining and medical visual question answering, at any scale."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2i2.demo import demo_image, demo_model
    from m2i2.hub import M2I2Config, M2I2ForPretraining, M2I2ForVisualQuestionAnswering, M2I2Processor

__version__ = "0.2.0"
__all__ = [
    "M2I2Config",
    "M2I2ForPretraining",
    "M2I2ForVisualQuestionAnswering",
    "M2I2Processor",
    "__version__",
    "demo_image",
    "demo_model",
]


def __getattr__(name: str) -> object:
    """The models, imported when they are first asked for, so that ``import m2i2`` alone costs nothing."""
    if name in ("demo_image", "demo_model"):
        import m2i2.demo

        return getattr(m2i2.demo, name)
    if name in __all__:
        import m2i2.hub

        return getattr(m2i2.hub, name)
    raise AttributeError(f"module 'm2i2' has no attribute {name!r}")
