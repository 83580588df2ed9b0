"""A rank of a very small run in which something goes wrong: ``faulty.py FAULT SHARDS FOLDER [HANG_SECONDS [STEPS [AT]]]``.

It is started once for each rank, with the environment that a launcher gives.
"""

import ctypes
import errno
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

from m2i2.config import PretrainingConfig
from m2i2.data.loading import items
from m2i2.data.loading.batch import CaptionBatch
from m2i2.exits import guarded
from m2i2.tasks.negatives import Negatives
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Key, Output
from m2i2.training.processes import leave
from tests.distributed.test_stored_state import flip
from tests.distributed.training_runs import narrow, trainer_of


def settings(shards: Path, hang_seconds: float, steps: int) -> PretrainingConfig:
    """Steps of some milliseconds."""
    base = narrow(shards, workers=1)
    training = replace(
        base.training,
        epochs=10_000,
        max_steps=steps,
        log_items=steps < 5000,
        log_every=max(5, steps // 400),
        save_every=max(3, steps // 400),
        hang_seconds=hang_seconds,
        replay_every=max(10, steps // 100),
        check_state=True,
    )
    return replace(base, training=training)


class Faulty(PretrainingTask):
    """The task, in which rank 1 meets the fault."""

    fault, at = "", 5
    group: Any = None
    spoil = False

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        super().begin_step(step, steps_per_epoch)
        if dist.get_rank() == 1 and step == self.at:
            if self.fault == "lock":  # a call into C that never gives up Python's lock
                threading.Thread(target=lambda: ctypes.PyDLL(None).sleep(10_000), daemon=True).start()
            elif self.fault == "deadlock":
                dist.barrier(self.group)  # rank 0 never comes
            elif self.fault == "nan":
                self.spoil, self.at = True, -1
        if self.fault == "slow" and dist.get_rank() == 1:
            time.sleep(0.3)
        elif self.fault == "slow" and step in (self.at, 2 * self.at):  # and the clock of rank 0 is set a day ahead, then back
            set_clock(86_400 if step == self.at else -86_400)

    def compute(self, batch: CaptionBatch, negatives: Negatives | None = None) -> Output:
        output = super().compute(batch, negatives)
        loss = output.loss * torch.nan if self.spoil else output.loss
        self.spoil = False
        return output._replace(loss=loss)

    def begin_micro_batch(self, key: Key) -> None:
        super().begin_micro_batch(key)


def set_clock(seconds: float) -> None:
    """Set this process's clock forward by so many seconds, or back."""
    clock = time.time
    time.time = lambda: clock() + seconds


def wrong_products(trainer: Any, at: int) -> None:
    """From step ``at`` on, every product of rank 1 has one number whose last bit is wrong."""
    linear = torch.nn.functional.linear

    def wrong(*arguments: Any, **named: Any) -> torch.Tensor:
        out: torch.Tensor = linear(*arguments, **named)
        if trainer.done + 1 < at:
            return out
        error = torch.zeros_like(out)
        with torch.no_grad():
            error.view(-1)[7] = torch.nextafter(out.detach().view(-1)[7], torch.tensor(torch.inf)) - out.detach().view(-1)[7]
        return out + error

    torch.nn.functional.linear = wrong


def flipped_bit(trainer: Any, what: str, at: int) -> None:
    """After step ``at``, one bit of what rank 1 stores is another."""
    step = trainer.step

    def flipped() -> Any:
        if trainer.done == at:
            states = {"teacher": trainer.task.beside["teacher"].state_dict(), "weights": trainer.task.student.state_dict()}
            states["queue"] = {"image": trainer.task.beside["queue"].state_dict()["image"]}
            states["moments"] = dict(enumerate(trainer.engine.own_moments()))
            flip(max(states[what].values(), key=torch.numel))
        return step()

    trainer.step = flipped


def full_disk(trainer: Any, at: int) -> None:
    """From step ``at`` on the disk is full under the saves, which rank 0 writes in the background."""
    store = trainer.saver.store_tokenizer

    def full(folder: Path) -> None:
        if trainer.done >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        store(folder)

    trainer.saver.store_tokenizer = full


def spoilt_worker(fault: str, folder: Path, after: int) -> None:
    """After so many samples, let a loader process raise, or read from a pipe into which nobody writes."""
    read, seen = items.Items.__getitem__, [0]

    def spoilt(self: Any, number: Any) -> Any:
        seen[0] += 1
        if seen[0] == after and fault == "raise":
            raise RuntimeError("a fault of the loader process")
        if seen[0] == after:
            (folder / "pipe").read_bytes()
        return read(self, number)

    items.Items.__getitem__ = spoilt  # type: ignore[method-assign]


def main(fault: str, shards: Path, folder: Path, hang_seconds: float = 600.0, steps: int = 40, at: int = 5) -> int:
    """Train up to ``steps``, with the fault at step ``at``."""
    torch.set_num_threads(1)
    if fault in ("worker", "raise") and os.environ["RANK"] == "1":
        spoilt_worker(fault, folder.parent, 20)
    trainer = trainer_of(settings(shards, hang_seconds, steps), folder, Faulty)
    task: Any = trainer.task
    task.fault, task.at, task.group = fault, at, dist.new_group()
    if fault == "products" and dist.get_rank() == 1:
        wrong_products(trainer, at)
    elif fault.startswith("flip ") and dist.get_rank() == 1:
        flipped_bit(trainer, fault.removeprefix("flip "), at)
    elif fault == "disk":
        full_disk(trainer, at)
    code = trainer.run()
    leave()
    return code


if __name__ == "__main__":
    words = sys.argv[1:]
    kinds = (str, Path, Path, float, int, int)[: len(words)]
    sys.exit(guarded(lambda: main(*(kind(word) for kind, word in zip(kinds, words, strict=True)))))  # type: ignore[arg-type]
