"""Random numbers that belong to a sample, not to a process."""

import numpy as np

_STREAM = 0x4D324932  # "M2I2"


def sample_generator(seed: int, epoch: int, item: int, stream: int = 0) -> np.random.Generator:
    """A random stream of item ``item`` in ``epoch``: the same in any process, order and number of workers."""
    return np.random.Generator(np.random.Philox(key=(seed << 32 | _STREAM) % (1 << 64), counter=[0, stream, epoch, item]))
