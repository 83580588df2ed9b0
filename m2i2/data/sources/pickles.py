"""Pickles of plain containers, texts and numbers, read without ever running anything that they name."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from m2i2.errors import M2I2Error
from m2i2.files import read_bytes

MOST_PICKLE = 32 << 20
"""Bytes; the whole of PathVQA's questions are under 3 MB."""
MOST_STEPS = 2_000_000
"""Opcodes; one makes up to a hundred bytes. PathVQA's largest file has some 600,000."""
_PLAIN = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("LIST", "EMPTY_LIST", "APPEND", "APPENDS", "DICT", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
}
"""The opcodes of lists, dictionaries, texts and numbers. Tuples and sets are left out: nested ones hash for ever."""
_NAMES = ("GLOBAL", "STACK_GLOBAL", "INST")
"""Opcodes that look up a class or a function: the unpickler below stops there and says which."""
_AMOUNTS = ("PUT", "BINPUT", "LONG_BINPUT", "FRAME")
"""Opcodes that can ask for a memo or a buffer of gigabytes."""
_LARGEST_NUMBER = 1 << 63
"""Larger numbers are refused: chosen ones have equal hashes, and a dictionary of those takes for ever."""


class _PlainUnpickler(pickle.Unpickler):
    """Refuses whatever names a class or a function before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise M2I2Error(f"it names {module}.{name}: only plain containers are read, because anything else could run code")

    def persistent_load(self, pid: Any) -> Any:
        raise M2I2Error("it refers to objects outside the file")


def plain_pickle(path: Path) -> Any:
    """The plain value in a pickle; M2I2Error for anything that would need a class, for damaged and for oversized files."""
    try:
        content = read_bytes(path, MOST_PICKLE)
    except OSError as e:
        raise M2I2Error(f"Cannot read {path}: {e.strerror}. PathVQA needs it, or the same questions as .json.") from e
    try:
        _check(content)
        return _PlainUnpickler(io.BytesIO(content)).load()
    except M2I2Error as e:
        raise M2I2Error(f"{path} was refused: {e}. Use the original file, or convert it to JSON.") from e
    except Exception as e:  # a damaged pickle raises almost anything
        raise M2I2Error(f"{path} is not a readable pickle ({type(e).__name__}: {e}). Download it again.") from e


def _check(content: bytes) -> None:
    """Refuse what is not plain, and what would cost memory or time out of proportion, before anything is loaded."""
    for number, (opcode, argument, place) in enumerate(pickletools.genops(content)):
        if number >= MOST_STEPS:
            raise M2I2Error(f"it has more than {MOST_STEPS} steps")
        if opcode.name in _NAMES:
            return
        if opcode.name not in _PLAIN:
            raise M2I2Error(f"it holds {opcode.name} at byte {place}")
        if opcode.name in _AMOUNTS and isinstance(argument, int) and argument > len(content):
            raise M2I2Error(f"byte {place} asks for {argument} entries or bytes")
        if isinstance(argument, int) and abs(argument) >= _LARGEST_NUMBER:
            raise M2I2Error(f"it holds a number of more than 64 bits at byte {place}")
