"""Lines of a Markdown table."""

from collections.abc import Iterable, Sequence


def row(words: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(words)} |"


def head(words: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [row(words), row(["---"] * len(words))]
