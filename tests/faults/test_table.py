"""The table of docs/faults.md names tests that exist."""

import ast
import re

from tests.conftest import ROOT


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
