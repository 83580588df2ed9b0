"""The one exception that users see: what is wrong, where, and what to do about it."""

import reprlib
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlevel = 3


class M2I2Error(ValueError):
    """A problem that the user can mend: bad input, bad settings, a damaged file.

    The message is one paragraph that names the thing (file, record, key, value), the reason and the remedy.
    Launchers and tools print it without a traceback and exit with code 2; anything else is a bug and keeps its traceback.
    """


def shown(value: Any) -> str:
    """A value from a file, short enough for a message however large or deep it is."""
    return _SHORT.repr(value)
