"""One sample as it travels from a source to the shards and back: an image with its captions or its questions."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Kind = Literal["captions", "vqa"]
KINDS: tuple[Kind, ...] = ("captions", "vqa")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about an image and its answer, both as the data set spells them (clean-up happens at load time)."""

    id: str
    """Unique within its data set and split."""
    question: str
    answer: str
    closed: bool
    """True for questions with a fixed choice of answers (yes/no, left/right), as the data set marks them."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What the data set says beside it: question_type, phrase_type, modality, organ, language, linked_id ..."""


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image with the texts that belong to it. One record becomes one sample of a shard.

    ``key`` is unique within the split and holds no dot and no slash, so that it can be a WebDataset key.
    A captions record has at least one caption and no question; a vqa record the other way round.
    """

    key: str
    split: str
    image: Path | bytes
    """A file, or the encoded image itself (JPEG, PNG ...)."""
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    passed_over: tuple[tuple[str, str], ...] = ()
    """(id, why) of the questions about this image that cannot be used; they are listed with the rejects."""


class Source(Protocol):
    """A data set on disk, read as a stream of records in a fixed order."""

    name: str
    kind: Kind

    left_out: Counter[str]
    """What the reader passed over, by reason; complete once the stream is exhausted."""

    notes: Counter[str]
    """What the reader had to decide because the data does not say it, and how often; also complete."""

    def __iter__(self) -> Iterator[ImageRecord]:
        """Raises M2I2Error, naming the file and the record, for anything malformed."""
        ...
