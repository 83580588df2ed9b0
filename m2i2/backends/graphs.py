"""Optimizer steps recorded once for each shape of batch and replayed afterwards: on a GPU a step is then one launch.

A step of ViT-B with BERT launches about 5,000 kernels. At the paper's batch of 32 a GPU finishes them faster than Python can launch
them. A CUDA graph launches all of them at once. What it records must depend on tensors alone: on batches, which are copied to where
the graph reads them, and on what a task and an engine fill in before each step (learning rate, share of soft targets, keys of
draws). PyTorch's graphs read the seed of dropout from the generator at each replay.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from m2i2.backends.choice import Backend
from m2i2.config import TrainingConfig
from m2i2.data.loading.batch import Batch

Losses = dict[str, Tensor]
Work = Callable[[Batch], Losses]
MOST = 16
"""Shapes of batches that are recorded; batches of further shapes are computed without a graph."""


class Recorder(Protocol):
    """A device's way to record work and do it again."""

    def run(self, work: Callable[[], Losses]) -> Losses:
        """Do the work once, as it will be recorded."""

    def record(self, work: Callable[[], Losses]) -> tuple[Callable[[], None], Losses]:
        """Record the work without doing it. Returns what does it, and the tensors that its results will be in."""


class CudaRecorder:
    """CUDA graphs. They share one pool of memory: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], Losses]) -> Losses:
        """On the stream that graphs are recorded on, so that the backward pass finds its gradients there."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            found = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return found

    def record(self, work: Callable[[], Losses]) -> tuple[Callable[[], None], Losses]:
        """Other threads, such as the loader's, may use the GPU meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            found = work()
        return graph.replay, found


def recorder(backend: Backend, training: TrainingConfig, ranks: int) -> tuple[Recorder | None, str]:
    """What records the steps of a run; None, and why, where they are not recorded."""
    if backend.device.type != "cuda":
        return None, ""
    reasons = {
        "training.graphs=false": not training.graphs,
        "several ranks train together": ranks > 1,
        f"training.accumulation={training.accumulation}": training.accumulation > 1,
        "training.checkpoint_activations=true draws its dropout again": training.checkpoint_activations,
        f"the {backend.kernel} kernels of AdamW ask the host": backend.kernel != "fused",
    }
    against = [reason for reason, holds in reasons.items() if holds]
    if against:
        return None, f"Steps are launched kernel by kernel, not as CUDA graphs: {against[0]}."
    return CudaRecorder(backend.device), "Steps are recorded as CUDA graphs, one for each shape of batch."


class Replayed:
    """``work``, done as it is for the first batch of a shape, and recorded and replayed from the second one on."""

    def __init__(self, work: Work, recorder: Recorder, forget: Callable[[], None], say: Callable[[str], None]) -> None:
        """``forget`` drops what an attempt to record has left on the host; ``say`` takes the message where recording fails."""
        self._work, self._recorder, self._forget, self._say = work, recorder, forget, say
        self._seen: set[object] = set()
        self._recorded: dict[object, tuple[Batch, Callable[[], None], Losses]] = {}
        self._broken = False

    def __call__(self, batch: Batch) -> Losses:
        """The losses of a batch on the device; they stay as they are."""
        tensors = batch.tensors()
        shape = tuple((name, tuple(t.shape), t.dtype) for name, t in tensors.items())
        if shape not in self._recorded:
            new = shape not in self._seen
            self._seen.add(shape)
            if new or self._broken or len(self._recorded) == MOST or not self._record(batch, shape):
                return self._recorder.run(lambda: self._work(batch))
        place, replay, losses = self._recorded[shape]
        for name, tensor in place.tensors().items():
            tensor.copy_(tensors[name], non_blocking=True)
        replay()
        together = torch.stack([loss.reshape(()) for loss in losses.values()])  # a later replay overwrites them
        return dict(zip(losses, together.unbind(), strict=True))

    def _record(self, batch: Batch, shape: object) -> bool:
        """Record the work for batches of this shape; False, and never again, where that fails."""
        place = batch.each(Tensor.clone)
        try:
            self._recorded[shape] = (place, *self._recorder.record(lambda: self._work(place)))
        except Exception as e:  # a driver, a kernel or a plug-in's objective may refuse with anything
            self._broken = True
            self._forget()
            first = str(e).strip().splitlines()[:1] or [type(e).__name__]
            self._say(f"Steps cannot be recorded as graphs ({first[0][:200]}); they are launched kernel by kernel from now on.")
        return not self._broken
