"""The table of docs/faults.md names tests that exist."""

import ast
import re

import pytest

from tests.conftest import ROOT

FAULTS = [
    *("SIGKILL", "SIGSTOP", "Python's lock", "a collective that one rank never reaches", "raises an exception", "stuck in a read"),
    *("weights, moments, teacher or queue", "products are wrong", "NaN or a loss spike, once", "NaN again and again", "slower"),
    *("disk full during a save in the background", "checkpoint folder gone", "the clock jumps", "a lost node"),
]
"""What a run must survive, in the words of the table."""


def test_every_row_names_its_test() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|") and "::test_" in line]
    assert len(table) >= 32
    for row in table:
        named = re.findall(r"`([a-z_/]+\.py)::(test_[a-z_]+)`", row)
        assert named, row
        for file, test in named:
            tree = ast.parse((ROOT / "tests" / file).read_text())
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (file, test)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_matrix_says_everything_of_every_fault(fault: str) -> None:
    matrix = (ROOT / "docs" / "faults.md").read_text().partition("| fault | found after |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in matrix.splitlines()[2:]]
    found = [row for row in rows if fault in row[0]]
    assert found and all(len(row) == 6 and all(row) for row in found), found
