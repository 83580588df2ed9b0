"""Batches on the device: on a GPU the next one is on its way while the step before it computes."""

import time
from collections.abc import Iterator
from typing import Any

import torch

from m2i2.data.loading.batch import Batch


class Ahead(Iterator[Batch]):
    """The batches of a loader, moved to a device by a stream of their own where ``ahead`` says so.

    Two of them are on the device at most: one that is computed with, and one on its way. Copies from page-locked memory then run
    beside the kernels; on a CPU nothing is gained, and a batch is taken when it is asked for.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device, *, ahead: bool | None = None) -> None:
        """``ahead``: default, on a GPU."""
        self._batches, self._device = batches, device
        self._ahead = device.type == "cuda" if ahead is None else ahead
        streams: Any = torch.get_device_module(device)
        self._streams, self._stream = streams, streams.Stream() if self._ahead else None
        self._sent: Batch | Exception | None = None
        self._waited_for_sent = 0.0
        self.waited = 0.0
        """Seconds that the host waited for the loader's last batch, the one that `next` has returned."""

    def __next__(self) -> Batch:
        """The next batch on the device; raises what the loader raised in its place."""
        self._send()
        sent, self._sent, self.waited = self._sent, None, self._waited_for_sent
        assert sent is not None
        if isinstance(sent, Exception):
            raise sent
        if self._ahead:
            current = self._streams.current_stream()
            current.wait_stream(self._stream)
            for tensor in sent.tensors().values():
                if tensor.device.type != "cpu":  # its memory must not be used again before this stream has read it
                    tensor.record_stream(current)
        return sent

    def send(self) -> None:
        """Begin to move the next batch. Called after a step was launched: waiting for the loader then costs the device nothing."""
        if self._ahead:
            self._send()

    def _send(self) -> None:
        if self._sent is not None:
            return
        started = time.monotonic()
        try:
            batch = next(self._batches)
        except Exception as e:  # the end of the batches, or an error of the loader: raised where the batch is asked for
            self._sent = e
        else:
            self._waited_for_sent = time.monotonic() - started
            if self._ahead:
                with self._streams.stream(self._stream):
                    self._sent = batch.to(self._device)
            else:
                self._sent = batch.to(self._device)
