"""The one exception that users see: what is wrong, where, and what to do about it; and texts made fit to be shown."""

import re
import reprlib
from typing import Any

MOST_MESSAGE = 4000
"""Characters of an error's message; what is cut is the middle, because the remedy stands at the end."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlevel = 3
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Characters that a terminal obeys or hides, those that turn the direction of writing, and halves of characters."""


def plain(text: str, most: int | None = None) -> str:
    """A text that may hold anything, fit for a terminal: control characters escaped, and its middle cut beyond ``most``.

    Line breaks and tabs stay.
    """
    if most is not None and len(text) > most:
        text = f"{text[: most * 3 // 4 - 5]} ... {text[-(most // 4) :]}"
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class M2I2Error(ValueError):
    """A problem that the user can fix: bad input, bad settings, a damaged file.

    The message is one paragraph that names the thing (file, record, key, value), the reason and the remedy. Whatever names and
    values it quotes, it is fit for a terminal: see `plain`.
    Launchers and tools print it without a traceback and exit with code 2; anything else is a bug and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain(" ".join(message.splitlines()), MOST_MESSAGE))


def shown(value: Any) -> str:
    """A value from a file, short enough for a message however large or deep it is."""
    return _SHORT.repr(value)
