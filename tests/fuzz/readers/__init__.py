"""Every reader that is fuzzed."""

from tests.fuzz.harness import Reader
from tests.fuzz.readers import checkpoints, images, medical, settings, shards, sources

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (*shards.READERS, *sources.READERS, *checkpoints.READERS, *images.READERS, *medical.READERS, *settings.READERS)
}
