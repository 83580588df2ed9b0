"""A save that fails on rank 0, whatever the reason, ends on every rank."""

from pathlib import Path

from m2i2.errors import M2I2Error
from m2i2.training.checkpoint import Checkpoints
from tests.distributed.processes import on_ranks


def _save(rank: int, ranks: int, folder: Path) -> tuple[str, str]:
    def fail(_: Path) -> None:
        raise RuntimeError("a fault of the program")

    try:
        Checkpoints(folder).save(1, fail)
    except (RuntimeError, M2I2Error) as e:
        return type(e).__name__, str(e)
    return "", ""


def test_a_fault_in_a_save_reaches_every_rank(tmp_path: Path) -> None:
    first, second = on_ranks(2, _save, tmp_path)
    assert first == ("RuntimeError", "a fault of the program"), "with its traceback where it happened"
    assert second[0] == "M2I2Error" and "failed: a fault of the program" in second[1]
    assert not list(tmp_path.iterdir())
