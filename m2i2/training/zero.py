"""ZeRO-1 and ZeRO-2 without a hook for each parameter: every rank steps its part of the flat weights (Rajbhandari et al., 2020).

DeepSpeed's engine calls Python for every parameter in every backward pass, and waits for the device in every step. Here gradients
are summed after the backward pass, by a few collectives over flat buffers. The parts are equal slices of the buffers. Stage 1 keeps
the whole gradient and sums it once per optimizer step. Stage 2 keeps only the part that a rank steps, and sums after every backward
pass; the gradients of that pass take the memory that its activations have left.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m2i2.backends.choice import Backend
from m2i2.config import OptimizerConfig
from m2i2.distributed import first_collective
from m2i2.training.buckets import Buckets, smallest
from m2i2.training.deepspeed.configuration import Partitioning
from m2i2.training.engine import Moments
from m2i2.training.flat import FlatEngine, Stepped, laid_out
from m2i2.training.rows import row_of, rows_of


class ZeroEngine(FlatEngine):
    """The engine of several ranks. Rank 0's weights are broadcast to every rank."""

    def __init__(
        self,
        student: nn.Module,
        config: OptimizerConfig,
        backend: Backend,
        accumulation: int,
        partitioning: Partitioning,
        *,
        scaled: bool = False,
    ) -> None:
        """``student``: float32 (or float64), on its device. ``partitioning``: what the DeepSpeed configuration asks for.

        The rest: see `FlatEngine`. Collective.
        """
        ranks, self._stage = dist.get_world_size(), partitioning.stage
        groups = laid_out(student, config.weight_decay, parts=ranks, gradients=self._stage == 1)
        flats = [flat for flat, _ in groups]
        trained = {id(parameter) for flat in flats for parameter in flat.parameters}
        frozen = [parameter.detach() for parameter in student.parameters() if id(parameter) not in trained]
        for tensor in (*(flat.data.detach() for flat in flats), *frozen):
            dist.broadcast(tensor, 0)
        numbers = max(partitioning.reduce_bucket, smallest(flats, ranks))
        self._rows = rows_of(
            flats,
            reduce_scatter=partitioning.reduce_scatter,
            numbers=numbers,
            shared=max(1, partitioning.gather_bucket),
        )
        self.shares_memory = self._rows.weights_in_memory
        sums = "each backward pass" if self._stage == 2 else "the last backward pass of a step"
        self.remarks = (f"ZeRO-{self._stage} over {ranks} ranks: gradients are summed in buckets after {sums}.",)
        stepped = []
        for flat, decay in groups:
            part = nn.Parameter(row_of(flat.data.detach()))
            part.grad = row_of(flat.gradient) if self._stage == 1 else torch.zeros_like(part)
            stepped.append(Stepped(flat, part, decay))
        super().__init__(student, stepped, config, backend, accumulation, scaled=scaled)
        self._summands = accumulation * ranks
        self._buckets = list[Buckets]()
        if self._stage == 2:
            longest = max(flat.data.numel() for flat in flats)
            memory = flats[0].data.detach().new_zeros(min(numbers, longest))
            self._buckets = [Buckets(one.flat, one.part.grad, memory) for one in stepped if one.part.grad is not None]

    def _collect(self, *, first: bool) -> None:
        if self._stage == 1:
            super()._collect(first=first)
            return
        first_collective.note()
        for flat, buckets in zip(self._flats, self._buckets, strict=True):
            if self.copies is not None:
                gradients = self.copies.take(flat.parameters)
            else:
                gradients = [parameter.grad for parameter in flat.parameters]
                for parameter in flat.parameters:
                    parameter.grad = None
            buckets.sum(gradients, self._rows, first=first)

    @torch.no_grad()
    def _update(self) -> None:
        ranks = dist.get_world_size()
        if self._stage == 1:
            first_collective.note()
            for flat in self._flats:
                self._rows.sum(flat.gradient.view(ranks, -1))
        super()._update()
        for flat in self._flats:
            self._rows.share(flat.data.detach().view(ranks, -1))

    def _over_all(self, norm: Tensor) -> Tensor:
        square = norm.square()
        dist.all_reduce(square)
        return square.sqrt()

    def _forget(self) -> None:
        if self._stage == 1:
            super()._forget()

    _live = False

    def _gathered(self, part: Tensor) -> Tensor | None:
        if dist.get_backend() == "gloo":
            part = part.cpu()
        pieces = [torch.empty_like(part) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
        dist.gather(part, pieces, dst=0)
        return None if pieces is None else torch.cat([piece.cpu() for piece in pieces])

    def moments(self) -> Moments | None:
        """See `Engine.moments`."""
        found = self._moments()
        return found if dist.get_rank() == 0 else None

    def _own(self, whole: Tensor) -> Tensor:
        return row_of(whole).clone()
