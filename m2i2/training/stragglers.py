"""Which rank is slower than its peers: by the time that each takes on its own, before a step's first collective.

Later in a step all ranks wait for the slowest one, so that only this part tells them apart. On a GPU it is the host's time: data,
and launching what comes before the first exchange.
"""

import torch

from m2i2.distributed import all_gather, first_collective
from m2i2.training.processes import Process


class Stragglers:
    """The time of this rank's own work since the last reading."""

    def __init__(self, process: Process) -> None:
        self._process, self._own = process, 0.0

    def begin_step(self) -> None:
        """The ranks have just met at the end of the step before."""
        first_collective.reset()

    def end_step(self) -> None:
        """After a step."""
        self._own += first_collective.seconds

    def reading(self) -> dict[str, float]:
        """``slowest_rank``, and ``slowest_by``, how many times the median rank's time it takes. Collective."""
        if self._process.ranks == 1:
            return {}
        everyones = all_gather(torch.tensor([self._own], device=self._process.device)).tolist()
        self._own = 0.0
        slowest = max(range(len(everyones)), key=everyones.__getitem__)
        others = sorted(seconds for rank, seconds in enumerate(everyones) if rank != slowest)
        median = others[len(others) // 2]
        return {"slowest_rank": slowest, "slowest_by": everyones[slowest] / median} if median > 0 else {}
