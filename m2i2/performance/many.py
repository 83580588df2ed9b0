"""The host's time of engines around very many very small parameters: what they do for each parameter, and nothing else."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2i2.config import OptimizerConfig, TrainingConfig
from m2i2.data.loading.sampling import Share
from m2i2.performance.engine import Watch
from m2i2.performance.training import Timing
from m2i2.tasks.task import Output
from m2i2.training.deepspeed.configuration import read_deepspeed_config
from m2i2.training.engines import make_engine
from m2i2.training.optimizer import adamw
from m2i2.training.runtime import Runtime

_WIDTH, _ROUNDS = 16, 2
_OPTIMIZER = OptimizerConfig(clip=1.0)


class _Chain(nn.Sequential):
    """Linear layers one after another, the same on every rank."""

    def __init__(self, parameters: int, device: torch.device) -> None:
        torch.manual_seed(0)
        super().__init__(*(nn.Linear(_WIDTH, _WIDTH, device=device) for _ in range(parameters // 2)))

    def loss(self) -> Tensor:
        x: Tensor = self(torch.ones(2, _WIDTH, device=next(self.parameters()).device))
        return x.square().mean()


def time_many_parameters(runtime: Runtime, timing: Timing, *, parameters: int, also: Sequence[str] = ()) -> dict[str, Any]:
    """Medians of the host's time that backward and optimizer step take beyond plain PyTorch's, without collectives. Collective.

    Of ``engine`` and of DeepSpeed's own, and of ``also``: ``ENGINE:FILE`` with a DeepSpeed configuration. ``..._host_ms``: by the
    clock on the wall; ``..._cpu_ms``: of the processor's time, which counts where others compute on it too.
    """
    engines = {"engine": ("auto", runtime), "deepspeed": ("deepspeed", runtime)}
    for one in also:
        kind, _, path = one.partition(":")
        config = read_deepspeed_config(Path(path))
        engines[f"{kind}_{Path(path).stem}"] = (kind, replace(runtime, deepspeed=config, deepspeed_source=path))
    watches, steps = dict[str, Watch](), dict[str, Callable[[], None]]()
    for name, (kind, its) in engines.items():
        watches[name] = Watch()
        steps[name] = _step_of(kind, its, parameters, watches[name])
    watches["plain"] = Watch()
    steps["plain"] = _plain_step(runtime, parameters, watches["plain"])
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for name, step in [*steps.items()] * _ROUNDS:
        with watches[name].watching():
            for number in range(timing.warm_up + timing.steps):
                before = watches[name].own()
                step()
                after = watches[name].own()
                if number >= timing.warm_up:
                    found[name].append((after[0] - before[0], after[1] - before[1]))
    medians = {name: [1e3 * statistics.median(row[clock] for row in rows) for clock in (0, 1)] for name, rows in found.items()}
    plain = medians.pop("plain")
    return {
        "parameters": parameters,
        "ranks": runtime.process.ranks,
        "steps": len(found["plain"]),
        "plain_host_ms": plain[0],
        "plain_cpu_ms": plain[1],
        **{f"{name}_host_ms": row[0] - plain[0] for name, row in medians.items()},
        **{f"{name}_cpu_ms": row[1] - plain[1] for name, row in medians.items()},
    }


def _step_of(kind: str, runtime: Runtime, parameters: int, watch: Watch) -> Callable[[], None]:
    """A step of an engine around a chain of its own."""
    process, chain = runtime.process, _Chain(parameters, runtime.device)
    training = replace(TrainingConfig(), engine=kind)  # type: ignore[arg-type]
    engine = make_engine(chain, _OPTIMIZER, training, runtime, Share(process.ranks, 1, process.rank, process.ranks))
    backward, micro_step = watch.wrap(engine.backward), watch.wrap(engine.micro_step)

    def step() -> None:
        backward(engine.forward(lambda: Output(chain.loss(), {}, {})).loss)
        micro_step()

    return step


def _plain_step(runtime: Runtime, parameters: int, watch: Watch) -> Callable[[], None]:
    chain = _Chain(parameters, runtime.device)
    optimizer = adamw(chain, _OPTIMIZER, runtime.backend)

    @watch.wrap
    def update(loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(chain.parameters(), _OPTIMIZER.clip)
        optimizer.step()
        optimizer.zero_grad()

    return lambda: update(chain.loss())
