"""Malformed inputs end in the project's own error, for every reader: a small, repeatable part of ``python -m tests.fuzz``."""

import pytest

from tests.fuzz.harness import explore
from tests.fuzz.readers import READERS
from tests.preloaded import LONG

INPUTS = 370 if LONG else 120


@pytest.mark.parametrize("name", READERS)
def test_malformed_inputs_end_in_our_error(name: str) -> None:
    count = explore(READERS[name], INPUTS, fresh=False)
    assert count.refused > INPUTS // 4, "the inputs are malformed"
