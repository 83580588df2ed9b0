"""The protocol ``clean``: which training questions may be trained on, and which choose the best checkpoint.

Left out of training is every rewrite of a test question: VQA-RAD's templated ("framed") questions that were made from test
records, and whatever asks the same words about the same image as one of those (3,064 - 284 - 7 = 2,773 remain).

The best checkpoint is chosen on questions whose images occur in no test set: those of the data set's own ``val`` split, less
the images that training or test share with it, or, where there is no such split, the questions of some training images that
the test set does not ask about, which are then not trained on.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2i2.data.loading.subset import SelectedSplit
from m2i2.data.shards.opening import storage_of
from m2i2.data.shards.split import ImageQuestion, ShardSplit, read_index
from m2i2.data.shards.storage import Storage
from m2i2.data.text.cleaning import clean_question
from m2i2.errors import M2I2Error


@dataclass(frozen=True, kw_only=True)
class CleanParts:
    """What ``clean`` makes of a folder of question shards."""

    train: SelectedSplit
    """What is trained on."""
    selection: SelectedSplit
    """What chooses the best checkpoint; may be empty where no share was asked for."""
    known: SelectedSplit
    """All training questions without rewrites, trained on or not: the answers that may be known before the end."""
    counts: Mapping[str, Any]
    """For results.json and for people."""


def clean_parts(place: str | Path | Storage, share: float, *, with_rewrites: bool = False) -> CleanParts:
    """Training and selection of a folder of question shards.

    ``share`` is that of the training questions which is kept for selection where the data set has no ``val`` split; 0 trains
    on all of them and selects nothing. ``with_rewrites`` trains on the rewrites after all, and changes nothing else, so that
    the leak can be measured. M2I2Error where the origin of framed questions is not known, and where nothing is left.
    """
    shards = storage_of(place)
    train = ShardSplit.open(shards, "train", "vqa")
    asked, tested = list(train.questions()), _tested(shards)
    leaking = rewrites(asked, shards.place)
    repeated = _repeats(asked, [asked[item] for item in leaking])
    remaining = [q for q in asked if q.item not in leaking and q.item not in repeated]
    test_images = {q.image_sha256 for q in tested}
    test_words = {_words(q) for q in tested}
    counts: dict[str, Any] = {
        "training_questions": len(asked),
        "rewrites_of_test_questions": len(leaking),
        "repeats_of_such_rewrites": len(repeated),
        "remaining": len(remaining),
        "same_words_as_a_test_question": sum(_words(q) in test_words for q in remaining),
        "training_images_in_test": len({q.image_sha256 for q in asked} & test_images),
    }
    selected, held, counts["selection"] = _select(shards, train, asked, remaining, test_images, share)
    held_images = {q.image_sha256 for q in held}
    trained = [q for q in remaining if q.image_sha256 not in held_images]
    if with_rewrites:
        trained += [q for q in asked if q.item in leaking | repeated and q.image_sha256 not in held_images]
    counts["selection_questions"], counts["selection_images"] = len(held), len(held_images)
    counts["trained_questions"], counts["trained_images"] = len(trained), len({q.image_sha256 for q in trained})
    if not trained:
        raise M2I2Error(f"The protocol clean leaves nothing of {shards.place} to train on; lower answering.selection={share}.")
    refuse_test_images(held, tested, shards.place)
    return CleanParts(
        train=SelectedSplit(train, [q.item for q in trained], "clean"),
        selection=selected,
        known=SelectedSplit(train, [q.item for q in remaining], "clean known"),
        counts=counts,
    )


def _select(
    shards: Storage,
    train: ShardSplit,
    asked: Sequence[ImageQuestion],
    remaining: Sequence[ImageQuestion],
    test_images: set[str],
    share: float,
) -> tuple[SelectedSplit, list[ImageQuestion], str]:
    """The questions that choose the checkpoint, as a split and one by one, and where they come from."""
    if share and "val" in read_index(shards)["splits"]:
        own = ShardSplit.open(shards, "val", "vqa")
        shared = test_images | {q.image_sha256 for q in asked}
        held = [q for q in own.questions() if q.image_sha256 not in shared]
        origin = f"the data set's own val split, less {len(own) - len(held)} questions on images of train or test"
        return SelectedSplit(own, [q.item for q in held], "clean selection"), held, origin
    images = _held_images(remaining, test_images, share)
    held = [q for q in remaining if q.image_sha256 in images]
    origin = "the questions of training images that the test set does not ask about" if share else "none"
    return SelectedSplit(train, [q.item for q in held], "clean selection"), held, origin


def rewrites(train: Sequence[ImageQuestion], place: str) -> set[int]:
    """The items that were framed from a test record; M2I2Error for framed questions of unknown origin."""
    framed = [q for q in train if q.question.metadata.get("phrase_type") == "frame"]
    if unknown := [q for q in framed if not q.question.metadata.get("framed_from")]:
        raise M2I2Error(
            f"{len(unknown)} framed questions of {place}, the first of them {unknown[0].question.id}, do not say which record "
            f"they were made from, so rewrites of test questions cannot be told from others. Build the shards again with "
            f"tools/make_shards.py vqa vqa-rad, from files whose question ids are the publication's."
        )
    return {q.item for q in framed if q.question.metadata["framed_from"].startswith("test")}


def refuse_test_images(selection: Collection[ImageQuestion], test: Collection[ImageQuestion], what: str) -> None:
    """M2I2Error where a question that would choose the checkpoint is about an image of the test set."""
    images = {q.image_sha256: q.key for q in test}
    if smuggled := [q for q in selection if q.image_sha256 in images]:
        raise M2I2Error(
            f"{len(smuggled)} questions that would choose the best checkpoint of {what} are about images of its test set, the "
            f"first about {smuggled[0].key}. The protocol clean does not allow it; leave those images out of the selection."
        )


def _tested(shards: Storage) -> list[ImageQuestion]:
    """The test questions (their answers are not looked at here), none where there is no test split."""
    if "test" not in read_index(shards)["splits"]:
        return []
    return list(ShardSplit.open(shards, "test", "vqa").questions())


def _words(asked: ImageQuestion) -> tuple[str, str]:
    return asked.image_sha256, " ".join(clean_question(asked.question.question, 50).split())


def _repeats(train: Sequence[ImageQuestion], leaking: Sequence[ImageQuestion]) -> set[int]:
    """The other items that ask the words of a leaking one about the same image."""
    words, items = {_words(q) for q in leaking}, {q.item for q in leaking}
    return {q.item for q in train if q.item not in items and _words(q) in words}


def _held_images(remaining: Sequence[ImageQuestion], test_images: set[str], share: float) -> set[str]:
    """Images whose questions make up at least ``share`` of the remaining ones (as far as there are images that no test
    question is about), in an order that depends on the images' keys alone, however they are encoded."""
    questions: dict[str, int] = {}
    keys: dict[str, str] = {}
    for q in remaining:
        if q.image_sha256 not in test_images:
            questions[q.image_sha256] = questions.get(q.image_sha256, 0) + 1
            keys[q.image_sha256] = min(q.key, keys.get(q.image_sha256, q.key))
    order = sorted(questions, key=lambda image: hashlib.sha256(f"selection {keys[image]}".encode()).hexdigest())
    before = np.cumsum([0, *(questions[image] for image in order)])
    return {image for image, so_far in zip(order, before, strict=False) if so_far < share * len(remaining)}
