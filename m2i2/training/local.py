"""The engine of one process alone: nothing is partitioned, and no collective is called, so that a step can be recorded."""

from torch import nn

from m2i2.backends.choice import Backend
from m2i2.config import OptimizerConfig
from m2i2.training.engine import Moments
from m2i2.training.flat import FlatEngine, Stepped, laid_out


class LocalEngine(FlatEngine):
    """Steps the whole of every buffer. The weights move into buffers of the engine."""

    def __init__(
        self, student: nn.Module, config: OptimizerConfig, backend: Backend, accumulation: int, *, scaled: bool = False
    ) -> None:
        """``student``: float32 (or float64), on its device. The rest: see `FlatEngine`."""
        stepped = [Stepped(flat, flat.data, decay) for flat, decay in laid_out(student, config.weight_decay)]
        super().__init__(student, stepped, config, backend, accumulation, scaled=scaled)

    def moments(self) -> Moments:
        """See `Engine.moments`."""
        return self._moments()
