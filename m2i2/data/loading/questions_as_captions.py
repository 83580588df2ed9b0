"""Captions out of questions: what the training questions of a VQA data set say about each training image.

A caption is a few questions with their answers, one after another ("is this an axial image yes what organ is enlarged
liver"), as many as fit into ``words``. Under the protocol ``clean`` (the default) only questions that are trained on are
read: no test question, no rewrite of one, and nothing that chooses the checkpoint.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from m2i2.data.loading.clean import clean_parts
from m2i2.data.loading.subset import SelectedSplit
from m2i2.data.records import ImageRecord, Kind, Question
from m2i2.data.shards.split import ShardSplit
from m2i2.data.text.cleaning import Normalisation, clean_answer, clean_question
from m2i2.errors import M2I2Error


class VqaText:
    """The training images of a folder of question shards, with their questions and answers as captions."""

    name = "vqa-text"
    kind: Kind = "captions"

    def __init__(self, path: Path, protocol: str = "clean", selection: float = 0.1, words: int = 30) -> None:
        """``selection``: the share that finetuning under ``clean`` keeps aside (answering.selection); it is left out here too."""
        if protocol not in ("paper", "clean"):
            raise M2I2Error(f"--protocol {protocol!r} must be paper or clean.")
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._path, self._protocol, self._selection, self._words = path, protocol, selection, words

    def __iter__(self) -> Iterator[ImageRecord]:
        self.left_out.clear()
        split: ShardSplit | SelectedSplit = ShardSplit.open(self._path, "train", "vqa")
        if self._protocol == "clean":
            everything = len(split)
            split = clean_parts(self._path, self._selection).train
            self.left_out["question that clean does not train on"] = everything - len(split)
        about: dict[str, list[Question]] = {}
        first_item: dict[str, int] = {}
        for asked in split.questions():
            first_item.setdefault(asked.key, asked.item)
            about.setdefault(asked.key, []).append(asked.question)
        form: Normalisation = "fixed" if self._protocol == "clean" else "official"
        for key, questions in about.items():
            sample = split.read(first_item[key])
            captions = tuple(packed([_statement(question, form) for question in questions], self._words))
            yield ImageRecord(key=key, split="train", image=sample.image, captions=captions, metadata=dict(sample.metadata))


def _statement(question: Question, form: Normalisation) -> str:
    return f"{clean_question(question.question, normalisation=form)} {clean_answer(question.answer, form)}".strip()


def packed(statements: list[str], words: int) -> Iterator[str]:
    """Statements joined, in order and each once, into texts of at most ``words`` words (a longer statement stands alone)."""
    waiting: list[str] = []
    length = 0
    for statement in dict.fromkeys(statements):
        size = len(statement.split())
        if waiting and length + size > words:
            yield " ".join(waiting)
            waiting, length = [], 0
        waiting.append(statement)
        length += size
    if waiting:
        yield " ".join(waiting)
