"""Lines of a Markdown table."""

from collections.abc import Iterable, Sequence


def row(words: Iterable[str]) -> str:
    """A line of a Markdown table. A vertical bar within a word does not end its cell."""
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


def head(words: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [row(words), row(["---"] * len(words))]
