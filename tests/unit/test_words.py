"""Words and phrases that this project does not use, because a reader has to stop at them.

The list is short on purpose. Every pattern must be safe: it matches no sentence that a careful writer would keep.
"""

import re
from itertools import chain
from pathlib import Path

import pytest

from tests.conftest import ROOT

UNUSED = {
    r"mend(s|ed|ing|able)?": "fix, repair",
    r"whoever": "the process that, anyone who",
    r"(him|her)self": "itself, themselves",
    r"for want of": "because there is no",
    r"as soon as may be": "as soon as possible",
    r"anew": "again, from the beginning",
    r"rightly": "correctly",
    r"in vain": "without success",
    r"(can|cannot|may|to) be had": "is available, is not available",
    r"live without": "run without, train without",
    r"rubbish": "leftover files",
    r"(images|samples|pairs|rows|steps|operations|bytes|[kmg]i?b) a second": "per second",
    r"([kmg]i?b|ms) a step": "per step",
    r"(one|two|three|four|eight|\d+) (loader )?(threads?|process(es)?|ranks?|workers?|[gc]pus?) a (rank|node|gpu)": "per rank",
    r"one a line": "one per line",
    r"drawn (images?|phantoms?|radiographs?|examples?)": "synthetic images",
    r"(?<!there )is no (\w+ )?(url|json|hash|number|name|record|task|setting|file|folder|option|medical device)": "is not a",
}
"""Pattern, in lower case, of whole words; and what to write instead. A space also matches a line end."""

WRITTEN = {"RESULTS.md"}
"""Pages that a tool writes from recorded results."""

_PATTERNS = [(re.compile(rf"\b(?:{pattern})\b".replace(" ", r"\s")), instead) for pattern, instead in UNUSED.items()]
_BREAK = re.compile(r"[ \t\"']*\n[ \t]*(#|f?[\"'])?[ \t]*")
"""A line end, with the comment sign or the quotes around it: a phrase may go on in the next comment or string."""


def finds(text: str) -> list[str]:
    """One line for each match: its line number, the words, and what to write instead."""
    text = _BREAK.sub("\n", text.lower())
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}; write: {instead}"
        for pattern, instead in _PATTERNS
        for match in pattern.finditer(text)
    ]


def test_none_is_used() -> None:
    """In the pages of the documentation, and in everything that the Python files say: messages, docstrings, comments, names."""
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(p for p in (ROOT / "docs").glob("*.md") if p.name not in WRITTEN)]
    code = chain.from_iterable((ROOT / folder).rglob("*.py") for folder in ("m2i2", "launchers", "tools", "tests"))
    files = [path for path in chain(pages, code) if path != Path(__file__)]
    assert len(files) > 300
    found = [f"{path.relative_to(ROOT)}, {what}" for path in sorted(files) for what in finds(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Right.\nMend the shards.", 2),
        ("# whoever reads it", 1),
        ('    f"{path} is no "\n    f"URL of a folder"', 1),
        ("one\ntwo GB\na second", 2),
        ("answers, one a\nline", 1),
        ("2 threads a rank", 1),
        ("1.5 MB a step", 1),
        ("a shard cannot\n    # be had", 1),
        ("on drawn\nimages", 1),
    ],
)
def test_they_are_found(text: str, line: int) -> None:
    (found,) = finds(text)
    assert found.startswith(f"line {line}: ")


@pytest.mark.parametrize(
    "text",
    [
        "We recommend it.",
        "There is no file, and there\nis no option.",
        "It is no longer a file.",
        "It takes a second.",
        "Two ranks hold a step each.",
        "The samples of a step",
        "The process itself ends.",
        "On one GPU a step takes longer.",
    ],
)
def test_plain_sentences_are_left_alone(text: str) -> None:
    assert finds(text) == []
