"""Copies of a run's state in the host's memory, to be written while training goes on."""

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Files = dict[str, dict[str, Tensor]]
"""Tensors by name, for each file of a checkpoint."""


class Snapshot:
    """Memory on the host that keeps its place from one save to the next. Page-locked where the state is on a GPU."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, str], Tensor] = {}
        self._preparing: threading.Thread | None = None

    def prepare(self, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take memory for ``files`` beside the training: the system hands it out slowly the first time."""
        wanted = {(file, name): _like(tensor) for file, tensors in files.items() for name, tensor in tensors.items()}
        self._preparing = threading.Thread(target=self._allocate, args=(wanted,), name="snapshot", daemon=True)
        self._preparing.start()

    def _allocate(self, wanted: Mapping[tuple[str, str], Callable[[], Tensor]]) -> None:
        for key, make in wanted.items():
            self._memory[key] = make()

    def take(self, files: Mapping[str, Mapping[str, Tensor]]) -> Files:
        """Copies of the tensors as they are now. They hold until the next call. Waits for the device."""
        if self._preparing:
            self._preparing.join()
            self._preparing = None
        copies, devices = Files(), set[torch.device]()
        for file, tensors in files.items():
            for name, tensor in tensors.items():
                place = self._memory.get((file, name))
                if place is None or place.shape != tensor.shape or place.dtype != tensor.dtype:
                    place = self._memory[file, name] = _like(tensor)()
                place.copy_(tensor.detach(), non_blocking=True)
                copies.setdefault(file, {})[name] = place
                devices.add(tensor.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
        return copies


def _like(tensor: Tensor) -> Callable[[], Tensor]:
    """What makes host memory like ``tensor``, with its pages in place."""
    shape, dtype, pinned = tensor.shape, tensor.dtype, tensor.device.type == "cuda"
    return lambda: torch.zeros(shape, dtype=dtype, pin_memory=pinned)
