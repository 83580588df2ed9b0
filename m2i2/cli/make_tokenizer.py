"""``tools/make_tokenizer.py``: a WordPiece vocabulary from the texts of shards."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from m2i2.data.shards.opening import storage_of
from m2i2.data.shards.split import ShardSplit, read_index
from m2i2.data.text.cleaning import clean_answer, clean_caption, clean_question
from m2i2.data.text.tokenizer import train_tokenizer
from m2i2.exits import guarded
from m2i2.files import require_new_folder
from m2i2.terminal import say

DESCRIPTION = """Make a WordPiece vocabulary of the words that occur in the training split of shards: of captions, or of
questions and answers (cleaned in the form "fixed"). It is for models whose text encoder starts at random. A model that
starts from a pretrained BERT needs the vocabulary of that BERT instead."""
EPILOG = """example:
  python tools/make_tokenizer.py shards/rocov2 shards/slake --output weights/vocabulary
  deepspeed launchers/finetune.py --preset tiny --shards shards/slake --output runs/slake start.tokenizer=weights/vocabulary

A vocabulary for pretraining and finetuning is made from the shards of both."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="make_tokenizer.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("shards", nargs="+", metavar="DIR", help="shards made by tools/make_shards.py, or the URL of such a folder")
    add("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    add(
        "--size",
        type=int,
        default=8000,
        help="tokens at most: every character, then the most frequent words (%(default)s)",
    )
    arguments = parser.parse_args(argv)
    return guarded(lambda: _make(arguments.shards, arguments.output, arguments.size))


def _make(places: Sequence[str], output: Path, size: int) -> int:
    require_new_folder(output, "name a new folder, or remove it: another vocabulary would not fit its models.")
    tokenizer = train_tokenizer((text for place in places for text in training_texts(place)), size)
    tokenizer.save(output)
    say(f"{tokenizer.size} tokens written to {output}; use them as start.tokenizer={output}")
    return 0


def training_texts(place: str) -> Iterator[str]:
    """Every text of a folder's training split, in the words that a model is trained on."""
    storage = storage_of(place)
    split = ShardSplit.open(storage, "train", read_index(storage)["kind"])
    if split.kind == "captions":
        yield from map(clean_caption, split.texts())
        return
    for asked in split.questions():
        yield clean_question(asked.question.question, normalisation="fixed")
        yield clean_answer(asked.question.answer, "fixed")
