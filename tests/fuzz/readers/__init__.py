"""Every reader that is fuzzed."""

from tests.fuzz.harness import Reader
from tests.fuzz.readers import checkpoints, images, medical, pictures, settings, shards, sources

_MODULES = (shards, sources, checkpoints, images, pictures, medical, settings)
READERS: dict[str, Reader] = {reader.name: reader for module in _MODULES for reader in module.READERS}
assert len(READERS) == sum(len(module.READERS) for module in _MODULES), "two readers of one name: one of them is never fuzzed"
