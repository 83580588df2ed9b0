"""Every reader that is fuzzed."""

from tests.fuzz.harness import Reader
from tests.fuzz.readers import checkpoints, images, medical, pictures, settings, shards, sources

READERS: dict[str, Reader] = {
    reader.name: reader
    for module in (shards, sources, checkpoints, images, pictures, medical, settings)
    for reader in module.READERS
}
