"""Mutations: of bytes, of JSON documents, of tables of text."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

_NUMBERS = [n for bits in (8, 16, 32, 64) for n in (0, 1, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 1)]
_WORDS = [
    b"\0",
    b"\xff",
    b"../",
    b"/etc/passwd",
    b"|touch x",
    b"pipe:",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b'"',
    b"\\",
]


def _number(draw: DrawFn) -> bytes:
    value, size = draw(st.sampled_from(_NUMBERS)), draw(st.sampled_from([1, 2, 4, 8]))
    order: Any = draw(st.sampled_from(["little", "big"]))
    return (value & (1 << 8 * size) - 1).to_bytes(size, order)


@st.composite
def mutated_bytes(draw: DrawFn, seeds: list[bytes], words: tuple[bytes, ...] = ()) -> bytes:
    """One to six edits of a valid input: bits, extreme numbers, known words, cuts, repeats, parts of another input."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        span = draw(st.sampled_from([1, 2, 4, 16, 64, 512]))
        match draw(st.integers(0, 7)):
            case 0 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                new = _number(draw)
                data[at : at + len(new)] = new
            case 2:
                data[at:at] = draw(st.sampled_from([*_WORDS, *words]))
            case 3:
                data[at : at + span] = draw(st.sampled_from([*_WORDS, *words]))
            case 4:
                del data[at : at + span]
            case 5:
                data[at:at] = data[at : at + span] * draw(st.sampled_from([1, 2, 100]))
            case 6:
                other = draw(st.sampled_from(seeds))
                start = draw(st.integers(0, len(other)))
                data[at : at + span] = other[start : start + span]
            case _:
                del data[at:]
    return bytes(data)


class Raw(str):
    """JSON text that stands for itself."""


_RAW = [
    Raw(text)
    for text in (
        *("NaN", "-Infinity", "1e400", "-0", "1" * 30, "1" * 5000, "0.1e-400", "1.0", "true", "[]", "{}", '""', "tru"),
        *('"\\ud800"', '"\\u0000"', '"\\udfff x"', '"' + "x" * 5000 + '"', '"../x"', '"/x"', '"pipe:touch x"', '"a/b.tar"'),
        *("[" * depth + "]" * depth for depth in (20, 700, 950, 5000)),
        *('{"a":' * depth + "1" + "}" * depth for depth in (20, 700, 950, 5000)),
    )
]
values = st.one_of(
    st.sampled_from(_RAW),
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
"""What takes the place of a node."""


def _dumped(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {_dumped(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_dumped, value)) + "]"
    return json.dumps(value)


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every node below ``value``."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _nodes(value[key])


def _change(draw: DrawFn, root: list[Any]) -> None:
    nodes = list(_nodes(root))
    container, key = nodes[draw(st.integers(0, len(nodes) - 1))]
    match draw(st.integers(0, 7)):
        case 0 if container is not root:
            del container[key]
        case 1 if isinstance(container, dict):
            container[draw(st.text(max_size=5))] = container.pop(key)
        case 2 if isinstance(container, dict):
            container[draw(st.text(max_size=5))] = draw(values)
        case 2:
            container.append(copy.deepcopy(container[key]))
        case 3:
            other, place = nodes[draw(st.integers(0, len(nodes) - 1))]
            container[key] = copy.deepcopy(other[place])
        case 4:
            container[key] = [container[key]]
        case 5 if isinstance(container[key], int | float):
            container[key] = draw(st.sampled_from([-1, 0, 1, 1.5, container[key] + 1, 1 << 31, 1 << 53, 1 << 63, 10**30]))
        case _:
            container[key] = draw(values)


@st.composite
def mutated_json(draw: DrawFn, seeds: list[bytes], lines: bool = False) -> bytes:
    """One to three changes of the tree of a valid document (of every line's with ``lines``), then perhaps of its bytes."""
    seed = draw(st.sampled_from(seeds))
    root = [[json.loads(line) for line in seed.splitlines()] if lines else json.loads(seed)]
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, root)
    if lines and isinstance(root[0], list):
        text = "\n".join(map(_dumped, root[0]))
    else:
        text = _dumped(root[0])
    data = text.encode("utf-8", "surrogatepass")
    return draw(mutated_bytes([data])) if draw(st.integers(0, 4)) == 0 else data


@st.composite
def mutated_table(draw: DrawFn, seeds: list[bytes]) -> bytes:
    """Cells of a valid CSV or TSV replaced, dropped, quoted by halves; separators and line ends mixed; then perhaps bytes."""
    text = draw(st.sampled_from(seeds)).decode()
    separator = "\t" if "\t" in text else ","
    rows = [line.split(separator) for line in text.splitlines()]
    cell = st.one_of(
        st.text(max_size=8),
        st.sampled_from(['"', '"a', 'a"b', '""', "\0", "\r", "\n", "../x", "/x", "x" * 140_000, "\ufeff", separator * 3, ""]),
    )
    for _ in range(draw(st.integers(1, 4))):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        place = draw(st.integers(0, len(row)))
        match draw(st.integers(0, 3)):
            case 0:
                row[place : place + 1] = []
            case 1:
                row.insert(place, draw(cell))
            case 2:
                rows.insert(draw(st.integers(0, len(rows))), list(row))
            case _:
                row[place : place + 1] = [draw(cell)]
    end = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    data = end.join(draw(st.sampled_from([separator, separator, separator, "\t", ";"])).join(row) for row in rows).encode()
    return draw(mutated_bytes([data])) if draw(st.integers(0, 4)) == 0 else data


def either(*strategies: Callable[[list[bytes]], SearchStrategy[bytes]]) -> Callable[[list[bytes]], SearchStrategy[bytes]]:
    """Mutations of any of the kinds given."""
    return lambda seeds: st.one_of([strategy(seeds) for strategy in strategies])
