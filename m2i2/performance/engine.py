"""The engine against plain PyTorch: the same task, kernels and batches, with and without an engine around the student.

On several ranks, DeepSpeed's own engine is measured in turn with the project's.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from m2i2.backends.choice import fuse_and_compile
from m2i2.config import PretrainingConfig
from m2i2.data.loading.sampling import Share
from m2i2.errors import M2I2Error
from m2i2.performance.measuring import StepClock
from m2i2.performance.training import DrawnBatches, Timing, drawn_captions, kept_batches, pretraining_task, trainer_of
from m2i2.tasks.task import Key, Task, step_generator_seed
from m2i2.training.deepspeed.configuration import read_deepspeed_config
from m2i2.training.optimizer import adamw
from m2i2.training.runtime import Runtime
from m2i2.training.trainer import Trainer

_COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "all_gather_single", "gather", "scatter"),
    *("reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single", "all_to_all_single", "barrier"),
)
_ROUNDS = 2
"""How often each kind of step is measured, alternately."""


class HostTime:
    """Seconds that the host spends inside some calls, without what it spends in collectives there."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """``clock``: seconds, of the wall or of the process's share of the processor."""
        self._clock = clock
        self.inside = self.collectives = 0.0
        self.counting = True
        """Whether calls are added: not during the warm-up, in which layers may be compiled."""
        self._depth = self._collective_depth = 0

    def wrap(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, its time added to `inside`."""

        def timed_work(*arguments: Any, **options: Any) -> Any:
            start = self._clock()
            self._depth += 1
            try:
                return work(*arguments, **options)
            finally:
                self._depth -= 1
                if self.counting and not self._depth:
                    self.inside += self._clock() - start

        return timed_work

    def wrap_collective(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, its time added to `collectives` where it is called inside; so is that of waiting for its handle."""

        def timed_work(*arguments: Any, **options: Any) -> Any:
            start = self._clock()
            self._collective_depth += 1
            try:
                handle = work(*arguments, **options)
            finally:
                self._collective_depth -= 1
                if self.counting and self._depth and not self._collective_depth:
                    self.collectives += self._clock() - start
            return _Handle(handle, self) if hasattr(handle, "wait") else handle

        return timed_work

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, every collective of torch.distributed and of DeepSpeed is timed."""
        import deepspeed.comm  # late: joining the process group chooses its accelerator first

        places = (dist, deepspeed.comm)
        originals = [(place, name, getattr(place, name)) for place in places for name in _COLLECTIVES if hasattr(place, name)]
        for place, name, work in originals:
            setattr(place, name, self.wrap_collective(work))
        try:
            yield
        finally:
            for place, name, work in originals:
                setattr(place, name, work)

    @property
    def own(self) -> float:
        """Inside, without collectives."""
        return self.inside - self.collectives


class _Handle:
    """The handle of an asynchronous collective, whose wait is timed."""

    def __init__(self, handle: Any, host: HostTime) -> None:
        self._handle, self.wait = handle, host.wrap_collective(handle.wait)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


class Watch:
    """Both clocks over the same calls."""

    def __init__(self) -> None:
        self.wall, self.cpu = HostTime(), HostTime(time.process_time)

    def wrap(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, timed."""
        return self.cpu.wrap(self.wall.wrap(work))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, collectives are timed apart."""
        with self.wall.watching(), self.cpu.watching():
            yield

    def own(self) -> tuple[float, float]:
        """Seconds so far without collectives, by either clock."""
        return self.wall.own, self.cpu.own

    def counting(self, on: bool) -> None:
        """Whether calls are added."""
        self.wall.counting = self.cpu.counting = on


class PlainSteps:
    """Optimizer steps of a task without an engine. Nothing is reduced over ranks: each one trains its own student."""

    def __init__(self, task: Task, config: PretrainingConfig, runtime: Runtime, batches: DrawnBatches) -> None:
        self.task, self.config, self.runtime, self.watch = task, config, runtime, Watch()
        modules = (task.student, *task.beside.values())
        for module in modules:
            module.to(runtime.device)
        fuse_and_compile(modules, runtime.backend, config.training)
        self.optimizer = adamw(task.student, config.optimizer, runtime.backend)
        self._batches, self._steps_per_epoch, self.done = iter(batches), batches.steps_per_epoch, 500
        self._update = self.watch.wrap(self._backward_and_step)

    def step(self) -> float:
        """One step; returns the seconds of drawing its batch."""
        self.task.begin_step(self.done, self._steps_per_epoch)
        start = time.perf_counter()
        batch = next(self._batches)
        waited = time.perf_counter() - start
        key = Key(self.config.training.seed, self.done, 0)
        torch.manual_seed(step_generator_seed(key, self.runtime.process.rank))
        self._update(self.task.forward(batch.to(self.runtime.device), key).loss)
        self.done += 1
        self.task.end_step()
        return waited

    def _backward_and_step(self, loss: torch.Tensor) -> None:
        loss.backward()
        if self.config.optimizer.clip:
            torch.nn.utils.clip_grad_norm_(self.task.student.parameters(), self.config.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def time_engine(
    config: PretrainingConfig, runtime: Runtime, timing: Timing, *, batch: int, tokens: int, also: Sequence[str] = ()
) -> dict[str, Any]:
    """A pretraining step by the launchers' engine over one by plain PyTorch, and by DeepSpeed's own on several ranks. Collective.

    ``engine_host_ms``: what the engine's backward and optimizer step take of the host beyond plain PyTorch's, without collectives;
    ``engine_cpu_ms``: the same of the process's share of the processor, which counts where others compute on it too.
    ``deepspeed_...``: the same of DeepSpeed's own engine. ``also``: engines and their DeepSpeed configurations, ``ENGINE:FILE``,
    which are measured in turn with these, as ``ENGINE_STEM_...``.
    """
    config = replace(config, training=replace(config.training, batch=batch, accumulation=1))
    process, device = runtime.process, runtime.device
    share = Share(batch, 1, process.rank, process.ranks)
    draw = kept_batches(lambda: drawn_captions(config, batch // process.ranks, tokens), device)
    engines = {"engine": (config, runtime)}
    if process.ranks > 1 and config.training.engine != "deepspeed":
        engines["deepspeed"] = (_by(config, "deepspeed"), runtime)
    for one in also:
        engine, _, path = one.partition(":")
        file = Path(path)
        changed = replace(runtime, deepspeed=read_deepspeed_config(file), deepspeed_source=path)
        engines[f"{engine}_{file.stem}"] = (_by(config, engine), changed)
    watches, kinds = dict[str, Watch](), dict[str, Callable[[], float]]()
    for name, (its, with_it) in engines.items():
        trainer = trainer_of(pretraining_task(its, with_it), its, DrawnBatches(share, draw), with_it)
        watches[name], kinds[name] = _watch(trainer), lambda trainer=trainer: trainer.step().waited  # type: ignore[misc]
    plain = PlainSteps(pretraining_task(config, runtime), config, runtime, DrawnBatches(share, draw))
    watches["plain"], kinds["plain"] = plain.watch, plain.step
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        for watch in watches.values():
            stack.enter_context(watch.watching())
        for kind, step in [*kinds.items()] * _ROUNDS:
            clock = StepClock(device, timing.warm_up)
            for number in range(timing.warm_up + timing.steps):
                watches[kind].counting(number >= timing.warm_up)
                clock.step(step)
            seconds[kind] += clock.seconds
    medians = {kind: statistics.median(found) for kind, found in seconds.items()}
    steps = _ROUNDS * timing.steps
    found = {
        "preset": config.preset,
        "precision": str(runtime.dtype).removeprefix("torch."),
        "batch": batch,
        "tokens": tokens,
        "ranks": process.ranks,
        "parameters": sum(1 for _ in plain.task.student.parameters()),
        "seconds_per_step_plain": medians["plain"],
        "ratio": medians["engine"] / medians["plain"],
    }
    for name in engines:
        mine = watches[name]
        found |= {
            f"seconds_per_step_{name}": medians[name],
            f"{name}_host_ms": 1e3 * (mine.wall.own - plain.watch.wall.own) / steps,
            f"{name}_cpu_ms": 1e3 * (mine.cpu.own - plain.watch.cpu.own) / steps,
            f"{'' if name == 'engine' else name + '_'}collectives_host_ms": 1e3 * mine.wall.collectives / steps,
        }
    return found


def _by(config: PretrainingConfig, engine: str) -> PretrainingConfig:
    if engine not in ("auto", "flat", "deepspeed"):
        raise M2I2Error(f"--also takes flat:FILE or deepspeed:FILE, not {engine}:...")
    return replace(config, training=replace(config.training, engine=engine))  # type: ignore[arg-type]


def _watch(trainer: Trainer) -> Watch:
    """Time the engine's backward pass and optimizer step on the host."""
    watch, engine = Watch(), trainer.engine
    engine.backward = watch.wrap(engine.backward)  # type: ignore[method-assign]
    engine.micro_step = watch.wrap(engine.micro_step)  # type: ignore[method-assign]
    return watch
