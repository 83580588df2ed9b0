"""Every reader that is fuzzed."""

from tests.fuzz.harness import Reader
from tests.fuzz.readers import checkpoints, images, pictures, shards, sources

READERS: dict[str, Reader] = {
    reader.name: reader for reader in (*shards.READERS, *sources.READERS, *checkpoints.READERS, *images.READERS, *pictures.READERS)
}
