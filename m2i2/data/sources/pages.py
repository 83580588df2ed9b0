"""What a parquet file asks of its reader, checked on its footer and page headers before Arrow decodes anything.

Two kilobytes can be a page of gigabytes, a million rows or a schema of endless depth. Arrow allocates what page headers say
and hands them to no one, so that they are read here (Thrift's compact protocol; parquet-format, parquet.thrift).
"""

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from m2i2.errors import M2I2Error, shown
from m2i2.files import check_file

if TYPE_CHECKING:
    from pyarrow import Array, DataType, RecordBatch
    from pyarrow.parquet import ParquetFile

MOST_FOOTER = 8 << 20
"""Bytes; data sets on the hub have up to some hundred kilobytes."""
MOST_SCHEMA, MOST_DEPTH = 10_000, 32
"""Columns and groups of columns; one in another."""
MOST_DECODED = 256 << 20
"""Bytes of all columns' current pages; the rows that are decoded at a time take no more either."""
_ENTRY = 32
"""Bytes that Arrow keeps for a value of a dictionary, beyond its own."""
MOST_WIDTH = 1 << 20
"""Bytes of values that all have one length: null ones take it too."""
MOST_VALUES = 1000
"""Values of a list, on average over a group of rows."""
MOST_RATIO, FREE = 100, 2 << 30
"""Bytes that a byte of a file may become in all, beyond the first two gigabytes."""
MOST_ROWS = 32
"""Rows that become Python objects at a time."""
_HEADER = 1 << 20
"""Bytes of a page's header, which may hold statistics."""
_DICTIONARY_PAGE = 2
_WIDTHS = {3: 1, 7: 8, 13: 16}
"""Bytes of Thrift's types of fixed size: byte, double, UUID."""


@dataclass(frozen=True)
class Chunk:
    """A column in a row group."""

    name: str
    """With the names of the groups of columns that it is in, separated by dots."""
    start: int
    """Of its first page, in bytes of the file."""
    size: int
    """Of all its pages, compressed."""


@dataclass(frozen=True)
class Group:
    """A row group. pyarrow's own view of one ends the process where its statistics are damaged."""

    rows: int
    chunks: list[Chunk]


class _Thrift:
    """Values of the compact protocol, as nested dictionaries by field number."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def number(self) -> int:
        """An unsigned number of 7 bits a byte."""
        value = shift = 0
        while True:
            byte = self.data[self.place]
            self.place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def signed(self) -> int:
        """A zigzag number."""
        value = self.number()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Fields by their number."""
        found: dict[int, Any] = {}
        field = 0
        while (head := self.data[self.place]) != 0:
            self.place += 1
            field = field + (head >> 4) if head >> 4 else self.signed()
            found[field] = head & 15 == 1 if head & 15 in (1, 2) else self.value(head & 15, depth)
        self.place += 1
        return found

    def value(self, kind: int, depth: int) -> Any:
        """A value of Thrift's type ``kind``."""
        if depth > MOST_DEPTH:
            raise ValueError("nested too deeply")
        if kind in (4, 5, 6):
            return self.signed()
        if kind == 8:
            length = self.number()
            self._skip(length)
            return self.data[self.place - length : self.place]
        if kind in (9, 10):
            head = self.data[self.place]
            self.place += 1
            count = head >> 4 if head >> 4 < 15 else self.number()
            return [self._element(head & 15, depth + 1) for _ in range(self._possible(count))]
        if kind == 11:
            if not (count := self.number()):
                return []
            kinds = self.data[self.place]
            self.place += 1
            pairs = range(self._possible(count))
            return [(self._element(kinds >> 4, depth + 1), self._element(kinds & 15, depth + 1)) for _ in pairs]
        if kind == 12:
            return self.struct(depth + 1)
        self._skip(_WIDTHS[kind])
        return None

    def _element(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):  # a truth value takes a byte here
            self._skip(1)
            return None
        return self.value(kind, depth)

    def _possible(self, count: int) -> int:
        if count > len(self.data) - self.place:
            raise ValueError("a list longer than its file")
        return count

    def _skip(self, length: int) -> None:
        self.place += length
        if self.place > len(self.data):
            raise IndexError("a value longer than its file")


def read_footer(path: Path) -> list["Group"]:
    """The row groups of a parquet file; M2I2Error for one that is not a regular file, or whose footer Arrow should not see."""
    try:
        size = check_file(path)
        with path.open("rb") as f:
            f.seek(max(0, size - 8))
            length, mark = struct.unpack("<I4s", f.read(8))
            if mark != b"PAR1" or length + 12 > size:
                raise ValueError("it does not end as one does")
            if length > MOST_FOOTER:
                raise M2I2Error(
                    f"{path} was refused: its footer has {length} bytes, more than {MOST_FOOTER}; write larger row groups."
                )
            f.seek(size - 8 - length)
            footer = _Thrift(f.read(length)).struct()
        _check_schema(footer[2])
        groups = [_group(group) for group in footer.get(4, [])]
    except M2I2Error:
        raise
    except OSError as e:
        raise M2I2Error(f"Cannot read {path}: {e.strerror}.") from e
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as e:
        raise M2I2Error(f"{path} is not a readable parquet file ({str(e) or type(e).__name__}). Download it again.") from e
    rows = sum(group.rows for group in groups)
    if not 0 <= rows <= size:
        raise M2I2Error(f"{path} was refused: it claims {rows} rows in {size} bytes, and each takes one at least.")
    return groups


def _group(fields: dict[int, Any]) -> "Group":
    """RowGroup, ColumnChunk and ColumnMetaData of parquet.thrift; ValueError or LookupError where something is missing."""
    chunks = []
    for column in fields[1]:
        if 3 not in column:
            raise ValueError("its columns are encrypted")
        described = column[3]
        start, dictionary = described[9], described.get(11, 0)
        name = ".".join(part.decode() for part in described[3])
        chunks.append(Chunk(name, dictionary if 0 < dictionary < start else start, described[7]))
    rows = fields[3]
    if rows < 0 or any(min(chunk.start, chunk.size) < 0 for chunk in chunks):
        raise ValueError("a negative size")
    return Group(rows, chunks)


def _check_schema(schema: list[dict[int, Any]]) -> None:
    """ValueError for a tree of columns that is too large or too deep; each element says how many children follow it."""
    if len(schema) > MOST_SCHEMA:
        raise ValueError(f"more than {MOST_SCHEMA} columns")
    open_ones: list[int] = []
    for element in schema:
        while open_ones and not open_ones[-1]:
            open_ones.pop()
        if open_ones:
            open_ones[-1] -= 1
        if children := element.get(5, 0):
            open_ones.append(children)
        if len(open_ones) > MOST_DEPTH:
            raise ValueError(f"columns nested more than {MOST_DEPTH} deep")


def batches(table: "ParquetFile", groups: Sequence[Group], path: Path, columns: Sequence[str]) -> Iterator["RecordBatch"]:
    """The rows of a file with ``groups`` of `read_footer`, a few at a time; M2I2Error where ``columns`` take too much memory."""
    for name in columns:
        check_type(table.schema_arrow.field(name).type, path, name)
    decoded, most = 0, FREE + MOST_RATIO * path.stat().st_size
    with path.open("rb") as file:
        for group in range(table.num_row_groups):
            rows = _rows_at_once(table, groups[group], file, f"{path} was refused: row group {group}", columns)
            for batch in table.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False):
                decoded += sum(map(_bytes_of, batch.columns))
                if decoded > most:
                    raise M2I2Error(f"{path} was refused: its rows unpack to more than {most} bytes.")
                yield batch


def _bytes_of(column: "Array") -> int:
    """What a column takes once its values stand in every row."""
    from pyarrow import types

    return (column.dictionary_decode() if types.is_dictionary(column.type) else column).nbytes


def check_type(kind: "DataType", path: Path, name: str, depth: int = 0) -> None:
    """M2I2Error for a column of a type that no data set needs, and that may take memory for values that are not there."""
    from pyarrow import types

    if depth > MOST_DEPTH:
        raise M2I2Error(f"{path} was refused: its column {shown(name)} is nested too deeply.")
    if types.is_struct(kind):
        for number in range(kind.num_fields):
            check_type(kind.field(number).type, path, name, depth + 1)
    elif types.is_list(kind) or types.is_large_list(kind) or (types.is_dictionary(kind) and not depth):
        check_type(kind.value_type, path, name, depth + 1)
    elif types.is_fixed_size_binary(kind):
        if kind.byte_width > MOST_WIDTH:
            raise M2I2Error(f"{path} was refused: its column {shown(name)} has values of {kind.byte_width} bytes each.")
    elif types.is_nested(kind) or getattr(kind, "extension_name", None) is not None:
        raise M2I2Error(
            f"{path}: the column {shown(name)} is {shown(str(kind))}; texts, numbers, bytes and lists of them are read."
        )


def _rows_at_once(table: "ParquetFile", group: Group, file: BinaryIO, what: str, columns: Sequence[str]) -> int:
    """How many rows of a group may be decoded at a time; M2I2Error where one is too many."""
    total = 0
    for number, chunk in enumerate(group.chunks):
        if not any(chunk.name == name or chunk.name.startswith(f"{name}.") for name in columns):
            continue
        where = f"{what}, column {shown(chunk.name)}"
        if table.metadata.schema.column(number).length > MOST_WIDTH:
            raise M2I2Error(f"{where}: values of more than {MOST_WIDTH} bytes each.")
        largest = values = 0
        for kind, size, count in _pages(file, chunk.start, chunk.start + chunk.size, where):
            size += _ENTRY * count if kind == _DICTIONARY_PAGE else 0
            if size > MOST_DECODED:
                raise M2I2Error(f"{where}: a page unpacks to {size} bytes. Write it again with smaller pages.")
            largest = max(largest, size)
            values += 0 if kind == _DICTIONARY_PAGE else count
        if values > MOST_VALUES * max(1, group.rows):
            raise M2I2Error(f"{where}: {values} values in {group.rows} rows.")
        total += largest
    if total > MOST_DECODED:
        raise M2I2Error(f"{what} unpacks to {total} bytes at a time, more than {MOST_DECODED}. Write it again with smaller pages.")
    return max(1, min(MOST_ROWS, MOST_DECODED // max(1, total)))


def _pages(file: BinaryIO, place: int, end: int, where: str) -> Iterator[tuple[int, int, int]]:
    """(type, bytes once unpacked, values) of every page of a column's chunk."""
    end = min(end, os.fstat(file.fileno()).st_size)
    while place < end:
        file.seek(place)
        reader = _Thrift(file.read(min(end - place, 1 << 12)))
        try:
            try:
                header = reader.struct()
            except IndexError:
                file.seek(place)
                reader = _Thrift(file.read(min(end - place, _HEADER)))
                header = reader.struct()
            described: dict[int, Any] = next((header[field] for field in (5, 7, 8) if field in header), {})
            kind, size, stored, values = header[1], header[2], header[3], described.get(1, 0)
            if min(size, stored, values) < 0:
                raise ValueError("a negative size")
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise M2I2Error(f"{where}: the header of a page is damaged ({type(e).__name__}). Download it again.") from e
        yield kind, size, values
        place += reader.place + stored
