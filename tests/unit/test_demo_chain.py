"""How the demo is run: on what the machine has, with a console for people."""

import io
from pathlib import Path

import pytest

from m2i2.demo.chain import Ranks, choose_ranks, pass_on, steps
from m2i2.presets import PRESETS

GPUS = tuple(str(number) for number in range(16))


@pytest.mark.parametrize(
    ("gpus", "cores", "number", "threads"),
    [
        *((0, 1, 1, 1), (0, 2, 2, 1), (0, 3, 2, 1), (0, 8, 2, 4), (0, 64, 2, 4)),
        *((1, 2, 1, 0), (2, 64, 2, 0), (3, 8, 2, 0), (6, 8, 4, 0), (8, 64, 8, 0), (16, 64, 8, 0)),
    ],
)
def test_ranks_are_chosen_by_what_is_there(gpus: int, cores: int, number: int, threads: int) -> None:
    found = choose_ranks(GPUS[:gpus], cores)
    assert (found.number, found.threads, found.gpus) == (number, threads, GPUS[: number if gpus else 0])
    assert found.number * found.threads <= cores
    for settings in PRESETS["tiny"]():
        assert settings.training.batch % found.number == 0, "the batch stays the preset's"


def test_the_command_of_a_gpu_leaves_the_choice_to_the_environment(tmp_path: Path) -> None:
    """--num_gpus would make DeepSpeed take the first GPUs of the node, whatever CUDA_VISIBLE_DEVICES says."""
    for ranks, given in ((Ranks(2, threads=1), True), (Ranks(1, ("GPU-0a1b",)), False)):
        commands = [words for _, words in steps(tmp_path, ranks, 12345) if words[0] == "deepspeed"]
        assert len(commands) == 2 and all(("--num_gpus" in words) is given for words in commands)


LAUNCHER = """\
[2026-11-27 00:39:24,178] [WARNING] [runner.py:214:fetch_hostfile] Unable to find hostfile
[2026-11-27 00:39:24,181] [INFO] [runner.py:618:main] cmd = python3 -u -m deepspeed.launcher.launch
Detected VISIBLE_DEVICES=3: setting --include=localhost:3
[2026-11-27 00:39:31,002] [INFO] [launch.py:152:main] WORLD INFO DICT: {'localhost': [0, 1]}
"""
OWN = "Training from step 0: 500 steps.\n[rank 1] is no line of the launcher\n"
FAILED = "[2026-11-27 00:39:31,002] [ERROR] [launch.py:259:sigkill_handler] python3 exits with return code = 2\n"


def test_what_the_launcher_says_of_itself_goes_to_the_log_and_the_rest_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log = io.StringIO()
    for line in (LAUNCHER + OWN + FAILED).splitlines(keepends=True):
        pass_on(line, log)
    assert log.getvalue() == LAUNCHER
    assert capsys.readouterr().out == OWN + FAILED
