"""From source files to batches: sources -> shards -> order -> loader. `open` is the loader as a library."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2i2.data.loading.samples import SampleLoader
    from m2i2.data.loading.samples import open_samples as open

__all__ = ["SampleLoader", "open"]


def __getattr__(name: str) -> object:
    """The loader, imported when it is first asked for: what reads images in a process of its own needs none of it."""
    if name in __all__:
        from m2i2.data.loading import samples

        return samples.open_samples if name == "open" else samples.SampleLoader
    raise AttributeError(f"module 'm2i2.data' has no attribute {name!r}")
