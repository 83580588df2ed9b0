"""Streams of Arrow's IPC format, as the library datasets saves its tables, checked before their values become Python objects.

A stream is mapped into memory, not read: what it takes are the rows of the moment. Arrow checks the structure of its messages;
what it does not bound are compressed buffers, and rows or lists that take no bytes (Schema.fbs and Message.fbs of Arrow).
"""

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2i2.data.sources.pages import MOST_DECODED, MOST_DEPTH, MOST_ROWS, MOST_VALUES, check_type
from m2i2.errors import M2I2Error, shown
from m2i2.files import check_file

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch

_HEADER, _COMPRESSION = 2, 3
"""Fields of a Message and of a RecordBatch, by their number."""


def rows(path: Path, choose: Callable[[Sequence[str]], Sequence[str]]) -> Iterator[dict[str, Any]]:
    """The rows of a stream, with the columns that ``choose`` names out of all.

    M2I2Error for one that is damaged, compressed, or takes too much memory.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as e:
        raise M2I2Error("Folders that datasets has saved need pyarrow: pip install '.[parquet]'.") from e
    status = path.stat()
    _try(path, status.st_size, status.st_mtime_ns)
    columns: list[str] = []
    try:
        for batch in _batches(path):
            if not columns:
                columns = list(choose(batch.schema.names))
                for name in columns:
                    check_type(batch.schema.field(name).type, path, name)
            chosen = batch.select(columns)
            for column, name in zip(chosen.columns, columns, strict=True):
                _check_lists(column, batch.num_rows, f"{path} was refused: column {shown(name)}")
            for part in _portions(chosen, path):
                yield from part.to_pylist()
    except M2I2Error:
        raise
    except Exception as e:  # damaged files raise almost anything
        reason = (str(e).splitlines() or [""])[0]
        raise M2I2Error(f"{path} is not a readable Arrow stream ({type(e).__name__}: {reason:.200}). Copy it again.") from e


def _batches(path: Path) -> Iterator["RecordBatch"]:
    """The record batches of a stream, views of the file, each checked completely."""
    import pyarrow as pa
    from pyarrow import ipc

    size = check_file(path)
    with pa.memory_map(str(path)) as source:
        messages = ipc.MessageReader.open_stream(source)
        schema = ipc.read_schema(messages.read_next_message())
        count = 0
        for message in messages:
            if message.type != "record batch":
                raise M2I2Error(f"{path} has a {message.type}; a column of plain values was expected, without a dictionary.")
            if _compressed(message.metadata.to_pybytes()):
                raise M2I2Error(f"{path} is compressed; save it again with datasets' save_to_disk, which does not compress.")
            batch = ipc.read_record_batch(message, schema)
            count += batch.num_rows
            if count > size:
                raise M2I2Error(f"{path} was refused: it claims {count} rows in {size} bytes, and each takes one at least.")
            batch.validate(full=True)
            yield batch


@cache
def _try(path: Path, size: int, changed: int) -> None:
    """Read a stream in another process first: M2I2Error where that ends by a signal. A damaged schema can end Arrow's reader."""
    places = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run([sys.executable, "-c", _TRIAL, str(path)], env={**os.environ, "PYTHONPATH": places}, capture_output=True)
    if done.returncode:
        raise M2I2Error(f"{path} is not a readable Arrow stream (its reader ended with {done.returncode}). Copy it again.")


_TRIAL = """
import contextlib, pathlib, sys
from m2i2.data.sources import arrow
with contextlib.suppress(Exception):
    for batch in arrow._batches(pathlib.Path(sys.argv[1])):
        str(batch.schema)
"""


def _portions(batch: "RecordBatch", path: Path) -> Iterator["RecordBatch"]:
    """At most `MOST_ROWS` rows and `MOST_DECODED` bytes at a time; M2I2Error for a row of more."""
    for start in range(0, batch.num_rows, MOST_ROWS):
        part = batch.slice(start, MOST_ROWS)
        if part.nbytes <= MOST_DECODED:
            yield part
            continue
        for row in range(part.num_rows):
            one = part.slice(row, 1)
            if one.nbytes > MOST_DECODED:
                raise M2I2Error(f"{path} was refused: a row has {one.nbytes} bytes, more than {MOST_DECODED}.")
            yield one


def _check_lists(column: "Array", rows: int, where: str, depth: int = 0) -> None:
    """M2I2Error where lists hold more values than a data set's: those of the type null take no bytes."""
    from pyarrow import types

    if depth > MOST_DEPTH:
        raise M2I2Error(f"{where} is nested too deeply.")
    if types.is_struct(column.type):
        for number in range(column.type.num_fields):
            _check_lists(column.field(number), rows, where, depth + 1)
    elif types.is_list(column.type) or types.is_large_list(column.type):
        if len(column.values) > MOST_VALUES * max(1, rows):
            raise M2I2Error(f"{where}: {len(column.values)} values in {rows} rows.")
        _check_lists(column.values, rows, where, depth + 1)


def _compressed(message: bytes) -> bool:
    """Whether the buffers of a record batch are compressed; struct.error for a message that is none."""
    (root,) = struct.unpack_from("<I", message)
    header = _field(message, root, _HEADER)
    batch = header + struct.unpack_from("<I", message, header)[0]
    return bool(_field(message, batch, _COMPRESSION))


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a FlatBuffers table lies; 0 where the table has none."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (length,) = struct.unpack_from("<H", data, vtable)
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + place)[0] if place < length else 0
    return table + offset if offset else 0
