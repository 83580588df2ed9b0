"""A command says in one paragraph how it ended where it is not a fault of the program."""

import pytest

from m2i2.exits import report

LOST = "DataLoader worker (pid 4711) is killed by signal: Killed. "


def wrapped(outer: Exception) -> Exception:
    """``outer``, as it is raised by code in which the handler of SIGCHLD raised ``LOST``."""
    try:
        try:
            raise RuntimeError(LOST)
        except RuntimeError as inner:
            raise outer from inner
    except Exception as error:
        return error


@pytest.mark.parametrize(
    "error", [RuntimeError(LOST), RuntimeError(f"in a hook:\n{LOST}"), wrapped(SystemError("a result with an exception set"))]
)
def test_a_lost_loader_process_is_told_wherever_its_error_was_raised(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert report(error) == 1
    said = capsys.readouterr().err
    assert said.startswith("error (rank 1): a loader process ended (DataLoader worker (pid 4711) is killed by signal: Killed.")
    assert "lower data.workers" in said and "Traceback" not in said


def test_a_fault_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ValueError("of the program's own")) == 1
    assert "fault:" in capsys.readouterr().err
