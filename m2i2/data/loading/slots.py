"""Images of a batch in memory that a worker shares and uses again.

A worker that stacks every batch into new shared memory has the kernel find and clear its pages, 6 MB for 32 images of 256
pixels. A slot is used again as soon as the training process has let go of the batch that lay in it.
"""

import weakref
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

SLOTS = 5
"""Of a worker: two batches wait (DataLoader's prefetch_factor), two are read ahead on a GPU, one is written."""
_MARK = np.frombuffer(b"m2i2slot", dtype=np.uint8)
_TAIL = len(_MARK) + 1
"""Bytes at the end of a slot: the mark, and whether it is in use."""
_slots: list[torch.UntypedStorage] = []
"""This worker's."""


def stacked(images: Sequence[Tensor]) -> Tensor:
    """[B, ...] uint8; in a worker in a slot, or in new shared memory where all are in use."""
    size = sum(image.numel() for image in images)
    storage = _free_slot(size) if get_worker_info() is not None else None
    if storage is None:
        batch: Tensor = default_collate(list(images))
        return batch
    out = torch.empty(0, dtype=torch.uint8).set_(storage)[:size].view(len(images), *images[0].shape)
    return torch.stack(list(images), out=out)


def _free_slot(size: int) -> torch.UntypedStorage | None:
    """A slot of at least ``size`` bytes, marked as in use; a new one as long as there are fewer than `SLOTS`."""
    for storage in _slots:
        if storage.nbytes() >= size + _TAIL and not _tail(storage)[-1]:
            _tail(storage)[-1] = 1
            return storage
    if len(_slots) >= SLOTS:
        return None
    storage = torch.UntypedStorage._new_shared(size + _TAIL)
    _tail(storage)[:] = [*_MARK, 1]
    _slots.append(storage)
    return storage


def received(image: Tensor) -> Tensor:
    """A batch of images as it came from a worker. Its slot is free again when the returned tensor and all its views are gone."""
    storage = image.untyped_storage()
    if storage.nbytes() < image.numel() + _TAIL or image.dtype != torch.uint8 or image.device.type != "cpu":
        return image
    tail = _tail(storage)
    if not np.array_equal(tail[:-1], _MARK):
        return image
    pixels = image.numpy()
    weakref.finalize(pixels, tail.__setitem__, -1, 0).atexit = False
    return torch.from_numpy(pixels)


def _tail(storage: torch.UntypedStorage) -> NDArray[np.uint8]:
    """The last bytes of a slot, shared."""
    tail: NDArray[np.uint8] = torch.empty(0, dtype=torch.uint8).set_(storage)[-_TAIL:].numpy()
    return tail
