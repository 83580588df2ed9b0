"""Replays: every rank computes a micro-batch again that another rank has computed, and the bits are compared.

Ranks hold the same weights, and a micro-batch has the same bits each time it is computed. Each rank computes its own micro-batch
and records what its collectives gave it. The next rank gets the batch and these records, draws with the first rank's seeds, and
computes the same alone. Compared are the losses, what is sent to other ranks, and the gradient of every weight. A rank that
computes wrongly disagrees with both its neighbours. Nothing of the run changes: weights, moments, queue and random numbers are as
without replays.
"""

import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from m2i2.config import TrainingConfig
from m2i2.data.loading.batch import Batch
from m2i2.distributed import Tape, all_gather, checksum, handed_on, on_first_rank, same_on_all_ranks
from m2i2.errors import M2I2Error
from m2i2.files import append_text
from m2i2.tasks.task import Key, Task, step_generator_seed
from m2i2.training.engine import Engine
from m2i2.training.lines import StepLines
from m2i2.training.replays.known_answers import KnownAnswers
from m2i2.training.replays.verdict import judge
from m2i2.training.runtime import Runtime
from m2i2.training.saving import Saver

RECORD = "replays.jsonl"
"""One line in the run's folder for each replay that did not agree. It stays when a run resumes."""
EXCLUDED = "exclude_hosts.txt"
"""Nodes, one per line, that computed wrongly in a SLURM job: later jobs of the run leave them out."""


class Replays:
    """The replays of a run."""

    def __init__(self, folder: Path, training: TrainingConfig, task: Task, engine: Engine, runtime: Runtime, saver: Saver) -> None:
        """``folder``: the run's."""
        self._folder, self._task, self._engine, self._saver = folder, task, engine, saver
        self._process, self._every = runtime.process, training.replay_every
        self._answers = KnownAnswers(runtime.device, runtime.dtype)
        self._deterministic = runtime.device.type == "cuda" and not training.compile  # compiled layers would be compiled again
        self._done = 0
        self._names: list[str] = []

    def begin(self, done: int) -> None:
        """The run goes on after ``done`` steps."""
        self._done = done

    def due(self, step: int, last: int) -> bool:
        """Whether to replay after ``step``: at intervals, and where as many steps are to be done, after the first and last one."""
        if not self._every:
            return False
        return step % self._every == 0 or (step in (self._done + 1, last) and last - self._done >= self._every)

    def check(self, step: int, key: Key, batch: Batch) -> None:
        """Replay a micro-batch of ``step``, which is done; M2I2Error, on every rank, where a rank computes wrongly. Collective.

        ``key``: of the micro-batch. Waits for the device.
        """
        ranks, me = self._process.ranks, self._process.rank
        held = [(me, batch, Tape(me))]
        own = self._computed(key, *held[0])
        if ranks == 1:
            other = self._computed(key, me, batch, Tape(me))
        else:
            held.append(self._from(1, held[0]))
            other = self._computed(key, *held[1])
        first, wrong = self._everyones([own, other]), self._answers.wrong()
        answers = [bool(flag) for flag in all_gather(torch.tensor([wrong], device=own.device)).tolist()]
        differ = [number for number in range(ranks) if not torch.equal(first[number, 0], first[(number + 1) % ranks, 1])]
        if not differ and not any(answers):
            if self._process.first:
                self._saver.checkpoints.note_agreed(step)
            return
        self._settle(step, key, held, first, answers)

    def _from(self, distance: int, own: tuple[int, Batch, Tape]) -> tuple[int, Batch, Tape]:
        """The micro-batch of the rank that stands ``distance`` before this one, and what its collectives gave it. Collective."""
        me, batch, tape = own
        rank, tensors = (me - distance) % self._process.ranks, batch.tensors()
        received = handed_on([*tensors.values(), *tape.received], distance)
        changed: dict[str, Any] = dict(zip(tensors, received, strict=False))
        return rank, replace(batch, **changed), Tape(rank, received[len(tensors) :])

    def _computed(self, key: Key, rank: int, batch: Batch, tape: Tape) -> Tensor:
        """[n, 2], the checksums of a micro-batch's losses, gradients and what is sent to other ranks."""
        device = self._process.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), fixed_bits(active=self._deterministic):
            with tape:
                self._task.begin_micro_batch(key)
                torch.manual_seed(step_generator_seed(key, rank))
                output, gradients = self._engine.gradients(lambda: self._task.compute(batch), self._task.student)
            self._task.forget()
            sums = {"the loss": checksum([output.loss])}
            sums |= {f"the loss {name}": checksum([loss]) for name, loss in output.losses.items()}
            if tape.sent:
                sums["what it sends to other ranks"] = checksum(tape.sent)
            modules: dict[str, list[Tensor]] = {}
            for name, gradient in gradients.items():
                modules.setdefault(".".join(name.split(".")[:2]), []).append(gradient)
            sums |= {f"the gradient of {module}": checksum(own) for module, own in modules.items()}
        self._names = list(sums)
        return torch.stack([one.to(device) for one in sums.values()])

    @staticmethod
    def _everyones(results: Sequence[Tensor]) -> Tensor:
        """[R, len(results), n, 2] on the host. Collective."""
        return all_gather(torch.stack(list(results)).unsqueeze(0)).cpu()

    def _settle(self, step: int, key: Key, held: list[tuple[int, Batch, Tape]], first: Tensor, answers: list[bool]) -> None:
        """Compute everything again from its inputs, on a third rank too, and say who is at fault. Collective."""
        ranks = self._process.ranks
        if ranks > 2:
            held = [*held, self._from(2, held[0])]
        again = self._everyones([self._computed(key, rank, batch, Tape(rank, tape.received)) for rank, batch, tape in held])
        verdict = judge(first, again, answers)
        everyones: list[Any] = [None] * ranks
        dist.all_gather_object(everyones, (os.environ.get("SLURMD_NODENAME") or socket.gethostname(), str(self._process.device)))
        differing = self._differing(first)
        row = {
            **{"step": step, "ranks": verdict.ranks, "certain": verdict.certain, "what": differing, "wrong_answers": answers},
            **{"places": everyones, "first": first.tolist(), "again": again.tolist()},
        }
        if self._process.first:
            StepLines(self._folder / RECORD, 1 << 62).add(row)
        if not verdict.ranks:
            self._every = 0
            self._process.say(
                f"Warning: after step {step} the same micro-batch had other bits each time it was computed ({_few(differing)}). "
                f"Kernels here do not fix them, or memory is at fault; see {self._folder / RECORD}. This start does no more "
                f"replays (training.replay_every)."
            )
            return
        self._end(step, verdict.ranks, verdict.certain, everyones, differing or ["a product whose result is known"])

    def _differing(self, first: Tensor) -> list[str]:
        """What differs between two ranks' results of a micro-batch, by name."""
        ranks = len(first)
        pairs = [(first[number, 0], first[(number + 1) % ranks, 1]) for number in range(ranks)]
        return [name for number, name in enumerate(self._names) if any(not torch.equal(a[number], b[number]) for a, b in pairs)]

    def _end(self, step: int, ranks: list[int], certain: bool, places: list[Any], what: list[str]) -> None:
        """Set aside the checkpoints that may be wrong, and end the run. Collective."""
        modules = (self._task.student, *self._task.beside.values())
        same = same_on_all_ranks(checksum([tensor for module in modules for tensor in module.state_dict().values()]))
        self._saver.finish()
        checkpoints = self._saver.checkpoints
        aside = on_first_rank(lambda: [path.name for path in checkpoints.suspect()])
        agreed = on_first_rank(checkpoints.agreed)
        hosts = sorted({places[rank][0] for rank in ranks})
        left_out = len(hosts) == 1 and "SLURM_JOB_ID" in os.environ
        if left_out and self._process.first:
            _add_line(self._folder / EXCLUDED, hosts[0])
        named = [f"rank {rank} on {places[rank][0]} ({places[rank][1]})" for rank in ranks]
        who = " and ".join(named) if certain else f"one of {', '.join(named)} (two ranks cannot tell which)"
        raise M2I2Error(
            f"{who[0].upper()}{who[1:]} computes wrongly: after step {step}, {_few(what)} of the same micro-batch had other bits "
            f"than elsewhere"
            + ("" if same else ", and the ranks' stored weights, teachers or queues differ")
            + (f". The last replay that agreed was after step {agreed}" if agreed >= 0 else ". No replay agreed before")
            + (f"; the checkpoints since are set aside as {', '.join(aside)}" if aside else "")
            + f". The same command resumes from before; leave that {'node' if len(hosts) == 1 else 'machine'} out"
            + (f" ({self._folder / EXCLUDED} does it under SLURM)." if left_out else ".")
        )


@contextmanager
def fixed_bits(*, active: bool) -> Iterator[None]:
    """Within it kernels are those that give the same bits each time, where there are such."""
    if not active:
        yield
        return
    before, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(True, warn_only=True)
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def _few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _add_line(path: Path, line: str) -> None:
    """Append a line, once."""
    if not path.exists() or line not in path.read_text().splitlines():
        append_text(path, line + "\n")
