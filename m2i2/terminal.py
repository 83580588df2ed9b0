"""The one place that writes to the terminal: whatever a text holds, the terminal shows it and obeys nothing in it."""

import sys
from typing import TextIO

from m2i2.errors import plain

MOST_LINE = 20_000
"""Characters of a line; names out of data can be of any length."""


def say(*words: object, file: TextIO | None = None, flush: bool = False, sign: str = "") -> None:
    """Print ``words``, which may come from data, a server or a log; ``sign``, which is ours, stands before them as it is.

    Control characters are escaped and long lines cut: see `m2i2.errors.plain`.
    """
    text = " ".join(map(str, words))
    lines = (plain(line, MOST_LINE) for line in text.split("\n"))
    print(sign + "\n".join(lines), file=file or sys.stdout, flush=flush)
