"""A bit that flips in the stored state between two steps is found before the next one, and named."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2i2.config import PretrainingConfig
from m2i2.errors import M2I2Error
from tests.distributed.processes import on_ranks
from tests.distributed.test_checkpoint import settings  # noqa: F401
from tests.distributed.training_runs import trainer_of

PLACES = ("weights", "moments", "teacher", "queue")


def flip(tensor: Tensor) -> None:
    """Flip one bit of one number, the lowest."""
    tensor.detach().view(-1)[tensor.numel() // 2 :].view(torch.int32)[0] ^= 1


def _found(rank: int, ranks: int, config: PretrainingConfig, folder: Path) -> list[str]:
    trainer = trainer_of(replace(config, training=replace(config.training, check_state=True)), folder)
    messages = []
    for _ in range(5):
        trainer.step()  # without a flip nothing is found
    for place in PLACES:
        states = {
            "weights": lambda: trainer.task.student.state_dict()["temp"],
            "moments": lambda: trainer.engine.own_moments()[-1],
            "teacher": lambda: max(trainer.task.beside["teacher"].state_dict().values(), key=torch.numel),
            "queue": lambda: trainer.task.beside["queue"].state_dict()["image"],
        }
        shared = place == "weights" and trainer.engine.shares_memory
        if rank == (0 if shared else ranks - 1):
            flip(states[place]())
        torch.distributed.barrier()
        try:
            trainer._stored.begin_step(trainer.done + 1)
            messages.append("")
        except M2I2Error as e:
            messages.append(str(e))
        if place == "teacher":  # and the replicas, at the end of a step
            trainer._stored.forget()
            try:
                trainer._stored.end_step(trainer.done)
                messages.append("")
            except M2I2Error as e:
                messages.append(str(e))
        torch.distributed.barrier()
        if rank == (0 if shared else ranks - 1):
            flip(states[place]())
        torch.distributed.barrier()
        trainer._stored.forget()
        trainer._stored.end_step(trainer.done)
    return messages


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_flipped_bit_is_found_before_the_next_step(settings: PretrainingConfig, tmp_path: Path, ranks: int) -> None:  # noqa: F811
    *others, last = on_ranks(ranks, _found, settings, tmp_path / "run")
    weights, moments, teacher, replicas, queue = last
    for name, message in (("weights", weights), ("moments", moments), ("teacher", teacher), ("queue", queue)):
        assert message.startswith(f"The stored {name} changed between the steps 5 and 6 on rank {ranks - 1} on "), message
    for other in others:
        assert other[1:3] == ["", ""] and other[4] == "", "the fault is another rank's"
    assert replicas.startswith("The stored teacher changed in step 5 on one of two ranks") == (ranks == 2)
