"""The core stays readable: short functions with few arguments. The direction of imports is checked by `make lint`."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("models", "objectives", "tasks", "training", "backends", "inference")
LINES, ARGUMENTS = 75, 8


def functions(path: Path) -> list[tuple[str, int, int]]:
    """(name, lines, arguments but for self and cls) of every function of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            given = len(names) - (names[:1] in (["self"], ["cls"], ["ctx"]))
            assert node.end_lineno is not None
            found.append((node.name, node.end_lineno - node.lineno + 1, given))
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_functions_fit_a_screen_and_take_few_arguments(folder: str) -> None:
    files = sorted((ROOT / "m2i2" / folder).rglob("*.py"))
    assert len(files) > 2
    long = [(path.name, *one) for path in files for one in functions(path) if one[1] > LINES or one[2] > ARGUMENTS]
    assert not long


def test_the_oldest_torch_that_is_admitted_is_the_one_that_is_tested() -> None:
    tested = re.search(r"^OLDEST_TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    admitted = re.search(r'"torch>=([\d.]+)"', (ROOT / "setup.py").read_text())
    assert tested and admitted and tested[1] == f"{admitted[1]}.0"
