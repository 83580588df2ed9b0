"""``tokenizer.json`` and ``vocab.txt`` from elsewhere: what BERT's tokenizers are made of is read, and nothing else.

The library builds whatever the file names: replacements that grow without end, regular expressions that never finish,
tables that make it panic. So the parts are checked against a list, and what was checked is what the library reads.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers

from m2i2.errors import M2I2Error, shown
from m2i2.files import read_bytes, read_object

MOST_BYTES = 16 << 20
"""Of either file; that of multilingual BERT has 3 MB."""
MOST_WORD = 1000
"""Characters of a word that is cut into pieces, which takes the square of it; BERT's bound is 100."""
MOST_TOKEN = 1000
"""Characters of a token."""
MOST_ADDED = 10_000
"""Tokens that are looked for before anything else."""
MOST_PARTS = 16
"""Parts one behind another."""
_PARTS = {
    "normalizer": ("BertNormalizer", "Lowercase", "StripAccents", "Strip", "NFC", "NFD", "NFKC", "NFKD"),
    "pre_tokenizer": ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits"),
    "post_processor": ("TemplateProcessing", "BertProcessing"),
    "decoder": ("WordPiece",),
}
"""What a part of a tokenizer may be; none of these makes a text longer than 18 times its length."""
_SEVERAL = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors", "decoder": "decoders"}


def read_tokenizer_file(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a ``tokenizer.json``; M2I2Error for another than WordPiece, or with parts that BERT's have not."""
    description = read_object(path, "tokenizer", " Store it again.", MOST_BYTES)
    try:
        _check_model(description.get("model"), path)
        for kind in _PARTS:
            _check_part(description.get(kind), kind, path)
        _check_added(description.get("added_tokens") or [])
        description |= {"truncation": None, "padding": None}  # ours to decide
        return tokenizers.Tokenizer.from_str(json.dumps(description))
    except M2I2Error:
        raise
    except BaseException as e:  # the library raises bare Exceptions, and its panics are none
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise M2I2Error(f"Cannot read the tokenizer {path}: {e}. Store it again.") from e


def read_vocabulary(path: Path) -> dict[str, int]:
    """The tokens of a ``vocab.txt`` with their ids; OSError or ValueError where it cannot be read."""
    lines = read_bytes(path, MOST_BYTES).decode("utf-8").removesuffix("\n").split("\n")  # tokens may hold U+2028
    tokens = [line.removesuffix("\r") for line in lines]
    if any(len(token) > MOST_TOKEN for token in tokens):
        raise ValueError(f"a token of more than {MOST_TOKEN} characters")
    return {token: number for number, token in enumerate(tokens)}


def _check_model(model: Any, path: Path) -> None:
    if not isinstance(model, dict):
        raise ValueError("it has no model")
    if (kind := model.get("type", "WordPiece")) != "WordPiece":
        raise M2I2Error(f"The tokenizer {path} is {shown(kind)}, not WordPiece as BERT's is.")
    vocabulary, most = model.get("vocab"), model.get("max_input_chars_per_word", 100)
    if not isinstance(vocabulary, dict) or not all(isinstance(number, int) and number >= 0 for number in vocabulary.values()):
        raise ValueError("its vocabulary is not valid")
    if any(len(token) > MOST_TOKEN for token in vocabulary):
        raise ValueError(f"it has a token of more than {MOST_TOKEN} characters")
    if not isinstance(most, int) or not 0 < most <= MOST_WORD:
        raise ValueError(f"its words may have {shown(most)} characters, more than {MOST_WORD}")
    if model.get("unk_token", "[UNK]") not in vocabulary:
        raise ValueError("its token for what is unknown is not in its vocabulary")
    for name in ("unk_token", "continuing_subword_prefix"):
        if not _short(model.get(name, "")):
            raise ValueError(f"its {name} is not a short text")


def _check_part(part: Any, kind: str, path: Path, within: bool = False) -> None:
    if part is None:
        return
    if not isinstance(part, dict):
        raise ValueError(f"its {kind} is not an object")
    name = part.get("type")
    if name == "Sequence" and not within:
        several = part.get(_SEVERAL[kind])
        if not isinstance(several, list) or len(several) > MOST_PARTS:
            raise ValueError(f"its {kind} has no list of at most {MOST_PARTS} parts")
        for one in several:
            _check_part(one, kind, path, within=True)
    elif name not in _PARTS[kind]:
        raise M2I2Error(
            f"The tokenizer {path} has the {kind} {shown(name)}, which is not read: BERT's tokenizers consist of "
            f"{', '.join(_PARTS[kind])}. Name a BERT tokenizer."
        )
    elif len(json.dumps(part)) > 10 * MOST_TOKEN:
        raise ValueError(f"its {kind} is longer than any")


def _check_added(tokens: Any) -> None:
    if not isinstance(tokens, list) or len(tokens) > MOST_ADDED:
        raise ValueError(f"it adds more than {MOST_ADDED} tokens")
    for token in tokens:
        if not isinstance(token, dict) or not token.get("content") or not _short(token["content"]):
            raise ValueError("it adds a token that is not a short text")


def _short(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= MOST_TOKEN
