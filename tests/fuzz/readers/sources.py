"""The readers of data sets: JSON, JSONL, CSV and pickles, through the sources that use them."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from m2i2.data.records import Kind
from m2i2.data.shards.building import Encoding
from m2i2.data.shards.encoding import encode
from m2i2.data.shards.identity import identity
from m2i2.data.sources import open_source
from tests.fuzz.harness import Opened, Reader
from tests.fuzz.mutation import either, mutated_bytes, mutated_json, mutated_table

_RAN: list[str] = []


def tripwire(where: str) -> None:
    """What a malicious pickle names; it must never be called."""
    _RAN.append(where)


class _Malicious:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return tripwire, ("a pickle",)


def _source(kind: Kind, name: str, file: str, seeds: list[bytes], beside: dict[str, bytes], path: str = ".") -> Any:
    """Opens the source ``name`` on a folder whose ``file`` is the input; its records go as far as the shards' bytes."""

    def opened(folder: Path) -> Opened:
        for other, content in beside.items():
            (folder / other).parent.mkdir(parents=True, exist_ok=True)
            (folder / other).write_bytes(content)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        encoding = Encoding(side=16)

        def read(data: bytes) -> None:
            (folder / file).write_bytes(data)
            for record in open_source(kind, name, folder / path):
                identity(record)
                encode(record, encoding)
            assert not _RAN, _RAN

        return Opened(seeds, read)

    return opened


_CAPTIONS = [
    {"image": "a.png", "caption": "one"},
    {"image": "b/c.jpg", "caption": ["two", "three"], "split": "val"},
]
_RAD = [
    {
        "qid": answer,
        "image_name": "a.jpg",
        "image_organ": "CHEST",
        "question": "is it?",
        "question_frame": "is it so?",
        "phrase_type": kind,
        "question_type": "PRES",
        "answer_type": "CLOSED ",
        "answer": answer,
        "qid_linked_id": "03f451ca-de62-4617-9679-e836026a7642",
    }
    for kind, answer in (("freeform", "yes"), ("test_freeform", 2))
]
_SLAKE = [
    {
        "qid": number,
        "img_id": 5,
        "img_name": "xmlab5/source.jpg",
        "question": "what organ?",
        "answer": "lung",
        "q_lang": language,
        "answer_type": "OPEN",
        "content_type": "Organ",
        "base_type": "vqa",
        "modality": "CT",
        "location": "Chest",
    }
    for number, language in enumerate(("en", "zh"))
]
_PATHVQA = [
    {
        "answer_type": kind,
        "img_id": "train_0001",
        "label": {answer: 1},
        "question_id": number,
        "question_type": "is",
        "sent": "is it?",
    }
    for number, (kind, answer) in enumerate((("yes/no", "yes"), ("other", "a cell"), ("number", 3)))
]
_PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**80), 2**80), st.floats(), st.text(max_size=4), st.binary(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=3), st.integers(), st.binary(max_size=2), st.none(), st.floats()), inner, max_size=3
        ),
        st.tuples(inner, inner),
        st.builds(bytearray),
        st.just(_Malicious()),
        st.builds(set),
    ),
    max_leaves=6,
)
_OPCODES = (
    *(b"(", b".", b"0", b"1", b"2", b"N", b"]", b"}", b")", b"a", b"e", b"s", b"u", b"l", b"d", b"t", b"\x85", b"\x86", b"\x90"),
    *(
        b"R",
        b"b",
        b"\x81",
        b"o",
        b"\x92",
        b"Q",
        b"Pid\n",
        b"cos\nsystem\n",
        b"ios\nsystem\n",
        b"\x93",
        b"\x82\x01",
        b"\x97",
        b"\x98",
    ),
    *(b"K\x01", b"J\xff\xff\xff\xff", b"I01\n", b"I" + b"9" * 5000 + b"\n", b"L5L\n", b"\x8a\x09" + b"\xff" * 9, b"Fnan\n"),
    *(
        b"\x8b\xff\xff\xff\x7f",
        b"X\xff\xff\xff\x7f",
        b"\x8d" + b"\xff" * 7 + b"\x7f",
        b"\x8c\x01a",
        b"S'a'\n",
        b"Va\\ud800\n",
        b"q\x00",
    ),
    *(
        b"r\xff\xff\xff\x7f",
        b"p999999999\n",
        b"h\x00",
        b"j\x00\x00\x00\x00",
        b"\x94",
        b"\x95" + b"\xff" * 8,
        b"\x80\x05",
        b"U\x01a",
    ),
)


@st.composite
def _changed_pickle(draw: DrawFn, seeds: list[bytes]) -> bytes:
    """Records with other values in them, in every protocol; opcodes one after another; bytes with opcodes among them."""
    match draw(st.integers(0, 2)):
        case 0:
            records: list[Any] = [dict(record) for record in _PATHVQA]
            for _ in range(draw(st.integers(1, 3))):
                record = records[draw(st.integers(0, 2))]
                field = draw(st.sampled_from(sorted(_PATHVQA[0])))
                record[field] = (
                    {draw(st.one_of(st.text(), st.integers(), st.none(), st.floats())): 1} if draw(st.booleans()) else draw(_PLAIN)
                )
            value = draw(st.sampled_from([records, records[0], *records[1:]])) if draw(st.booleans()) else records
            return pickle.dumps(value, draw(st.integers(0, 5)))
        case 1:
            start = draw(st.sampled_from([b"", b"\x80\x02", b"\x80\x04", *seeds]))
            return start.removesuffix(b".") + b"".join(draw(st.lists(st.sampled_from(_OPCODES), min_size=1, max_size=12))) + b"."
        case _:
            return draw(mutated_bytes(seeds, _OPCODES))


def _lines(seeds: list[bytes]) -> SearchStrategy[bytes]:
    return mutated_json(seeds, lines=True)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


_TABLE_WORDS = (
    b";",
    b"|",
    b"\t",
    b"sep=;\n",
    b"\xef\xbb\xbf",
    b"\r",
    b"nan",
    b"training",
    b"frame",
    b"test_freeform",
    b"a.png",
    b"{",
    b"[",
)
_QUESTIONS = [
    b"image,question,answer,split,answer_type\na.png,is it?,yes,training,Y/N\nb.tif,what?,2,dev,\n",
    b"filename;question;answer;phrase_type;qid\nsynpic1.jpg;is it?;yes;freeform;1\nsynpic1.jpg;is it so?;yes;frame;2\n",
    b"image\tquestion\tanswers\n a.png \tis it?\tno\n",
]
_LAYOUTS = [
    _json(
        {
            "train": [{"image": "a.png", "question": "q", "answer": ["yes"]}],
            "test": [{"image": "b.png", "question": "q", "answer": 2.0}],
        }
    ),
    _json([{"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "yes"}]}]),
    _json(
        {
            "data": [
                {
                    "Image": "./a.png",
                    "question": "q",
                    "answer": None,
                    "answer_type": "closed-ended",
                    "qid": 7,
                    "phrase_type": "frame",
                }
            ]
        }
    ),
]
_ROCO = [b"ID,Caption\nx_1,one two\nx_2,three\n", b"ID\tcaption\nx_1\tone, two\n"]
_REPORTS = b"uid,problems,findings,impression\n1,normal,clear,none\n2,a,b,c\n"
_PROJECTIONS = b"uid,filename,projection\n1,1_a.png,Frontal\n2,2_b.png,Lateral\n"
_EMPTY = _json([])
_QAS = {f"qas/{split}_vqa.json": _EMPTY for split in ("val", "test")}

READERS = [
    Reader("captions in JSON", _source("captions", "json", "p.json", [_json(_CAPTIONS)], {}, "p.json"), mutated_json),
    Reader(
        "captions in JSONL",
        _source("captions", "json", "p.jsonl", [b"\n".join(map(_json, _CAPTIONS))], {}, "p.jsonl"),
        _lines,
    ),
    Reader(
        "questions in CSV and TSV",
        _source("vqa", "json", "q.csv", _QUESTIONS, {}, "q.csv"),
        either(mutated_table, lambda seeds: mutated_bytes(seeds, _TABLE_WORDS)),
    ),
    Reader(
        "questions in JSON of any layout",
        _source("vqa", "json", "q.json", _LAYOUTS, {}, "q.json"),
        either(mutated_json, lambda seeds: mutated_bytes(seeds, _TABLE_WORDS)),
    ),
    Reader("CSV and TSV (ROCOv2)", _source("captions", "rocov2", "train_captions.csv", _ROCO, {"train/x": b""}), mutated_table),
    Reader(
        "CSV (IU X-ray)",
        _source(
            "captions", "iu-xray", "indiana_reports.csv", [_REPORTS], {"indiana_projections.csv": _PROJECTIONS, "images/x": b""}
        ),
        mutated_table,
    ),
    Reader(
        "JSON (VQA-RAD)",
        _source(
            "vqa", "vqa-rad", "VQA_RAD Dataset Public.json", [_json(_RAD)], {"images/x": b"", "VQA_RAD Dataset Public.json": b""}
        ),
        mutated_json,
    ),
    Reader(
        "JSON (SLAKE)",
        _source("vqa", "slake", "train.json", [_json(_SLAKE)], {"validate.json": _EMPTY, "test.json": _EMPTY}),
        mutated_json,
    ),
    Reader("JSON (PathVQA)", _source("vqa", "pathvqa", "qas/train_vqa.json", [_json(_PATHVQA)], _QAS), mutated_json),
    Reader(
        "pickle (PathVQA)",
        _source("vqa", "pathvqa", "qas/train_vqa.pkl", [pickle.dumps(_PATHVQA, p) for p in range(6)], _QAS),
        either(_changed_pickle),
    ),
]
