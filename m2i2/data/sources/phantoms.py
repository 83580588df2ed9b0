"""Built-in demo data: synthetic images that look a little like radiographs, with captions and questions that need the image.

They carry no medical truth. Every question string is asked with each of its answers about equally often, so that a
model that does not look at the image gains nothing by guessing well.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from m2i2.data.records import ImageRecord, Kind, Question
from m2i2.data.sources.phantom_drawing import SIDE, draw
from m2i2.errors import M2I2Error

REGIONS = ("chest", "abdomen", "head", "hand")
MODALITIES = ("x-ray", "ct", "mri", "ultrasound")
LESIONS = ("nodule", "cyst", "mass")
DEVICES = ("pacemaker", "tube", "clip")
COUNTS = ("one", "two", "three")
SPLITS = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Findings:
    """What is to be seen in a phantom. Sides are those of the picture, not of a patient."""

    region: str
    modality: str
    lesion: str | None
    count: int
    side: str
    level: str
    size: str
    device: str | None


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic image [SIDE, SIDE] uint8, what is in it, and where its lesions lie [SIDE, SIDE] bool."""

    image: np.ndarray
    findings: Findings
    lesion_mask: np.ndarray


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 1, SPLITS[split], index]))


def draw_phantom(seed: int, split: str, index: int) -> Phantom:
    """Phantom ``index`` of a split; images of different splits, seeds or numbers are drawn from different streams."""
    rng = _generator(seed, split, index)
    lesion = LESIONS[rng.integers(3)] if rng.random() < 0.6 else None
    findings = Findings(
        region=REGIONS[rng.integers(4)],
        modality=MODALITIES[rng.integers(4)],
        lesion=lesion,
        count=int(rng.integers(1, 4)) if lesion else 0,
        side=("left", "right")[rng.integers(2)],
        level=("upper", "lower")[rng.integers(2)],
        size=("small", "large")[rng.integers(2)],
        device=DEVICES[rng.integers(3)] if rng.random() < 0.5 else None,
    )
    image, mask = draw(findings, rng)
    return Phantom(image, findings, mask)


@lru_cache(maxsize=4096)
def _encoded(seed: int, split: str, index: int) -> tuple[bytes, Findings]:
    phantom = draw_phantom(seed, split, index)
    out = io.BytesIO()
    Image.fromarray(phantom.image).save(out, "JPEG", quality=92)
    return out.getvalue(), phantom.findings


def _plural(lesion: str, count: int) -> str:
    return f"{COUNTS[count - 1]} {lesion}{'' if count == 1 else 'es' if lesion == 'mass' else 's'}"


def caption(findings: Findings, rng: np.random.Generator) -> str:
    """One of several ways to say what is to be seen."""
    f = findings
    opening = (
        f"{f.modality} image of the {f.region}",
        f"imaging modality {f.modality}, body region {f.region}",
        f"{f.modality} of the {f.region} region",
        f"this is an image of the {f.region}, the modality is {f.modality}",
    )[rng.integers(4)]
    if f.lesion is None:
        seen = ("without a lesion", "no lesion is visible", "there is no lesion of any kind")[rng.integers(3)]
    else:
        what, be = f"{_plural(f.lesion, f.count)} of {f.size} size", "is" if f.count == 1 else "are"
        where = (f"in the {f.level} part on the {f.side} side", f"on the {f.side} side in the {f.level} part")[rng.integers(2)]
        seen = (f"in which {what} {be} shown {where}", f"{where} there {be} {what}", f"with {what} {where}")[rng.integers(3)]
    if f.device is None:
        return f"{opening}, {seen}"
    return (f"{opening}, {seen}, and a {f.device}", f"{opening}, {seen}, a device is visible: a {f.device}")[rng.integers(2)]


def _lesion_questions(f: Findings, rng: np.random.Generator) -> list[tuple[str, str, bool, str]]:
    assert f.lesion is not None
    asked_side, asked_size = ("left", "right")[rng.integers(2)], ("small", "large")[rng.integers(2)]
    yes = ("no", "yes")
    return [
        ("what kind of lesion is shown?", f.lesion, False, "lesion"),
        ("on which side is the lesion?", f.side, False, "side"),
        ("is the lesion in the upper or in the lower part?", f.level, True, "level"),
        ("how many lesions are there?", str(f.count), False, "count"),
        ("what size is the lesion?", f.size, False, "size"),
        (f"is the lesion on the {asked_side} side?", yes[asked_side == f.side], True, "side"),
        (f"is the lesion {asked_size}?", yes[asked_size == f.size], True, "size"),
    ]


def questions(findings: Findings, rng: np.random.Generator) -> list[tuple[str, str, bool, str]]:
    """(question, answer, closed, type) of an image, in random order."""
    f = findings

    def either(values: tuple[str, ...], true: str) -> str:
        """The true value half of the time, else another."""
        others = [v for v in values if v != true]
        return true if rng.random() < 0.5 else others[rng.integers(len(others))]

    region, modality = either(REGIONS, f.region), either(MODALITIES, f.modality)
    rows = [
        ("which body region is shown?", f.region, False, "region"),
        ("what is the imaging modality?", f.modality, False, "modality"),
        (f"is this an image of the {region}?", ("no", "yes")[region == f.region], True, "region"),
        (f"is the modality {modality}?", ("no", "yes")[modality == f.modality], True, "modality"),
        ("is a device visible?", ("no", "yes")[f.device is not None], True, "device"),
    ]
    if f.device is not None:
        rows.append(("what device is visible?", f.device, False, "device"))
    if f.lesion is not None:
        rows += _lesion_questions(f, rng)
    if f.lesion is None or rng.random() < 0.65:  # lesions are in 60 % of the images: yes and no about equally often
        rows.append(("is there a lesion?", ("no", "yes")[f.lesion is not None], True, "presence"))
    return [rows[i] for i in rng.permutation(len(rows))]


def _check_count(count: int) -> None:
    if count < 1:
        raise M2I2Error(f"--count {count} leaves no image to train on; it must be at least 1.")


class PhantomCaptions:
    """Captioned phantoms: ``count`` for training and a tenth of that for validation."""

    name = "phantoms"
    kind: Kind = "captions"

    def __init__(self, count: int = 2000, seed: int = 0) -> None:
        _check_count(count)
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._splits, self._seed = {"train": count, "val": max(1, count // 10)}, seed

    def __iter__(self) -> Iterator[ImageRecord]:
        for split, count in self._splits.items():
            for index in range(count):
                image, findings = _encoded(self._seed, split, index)
                text = caption(findings, np.random.default_rng([self._seed, SPLITS[split], index]))
                yield ImageRecord(key=f"phantom-{index:06d}", split=split, image=image, captions=(text,))


class PhantomQuestions:
    """Questions about phantoms, up to 8 an image: ``count`` images for training, a tenth and a fifth for val and test."""

    name = "phantoms"
    kind: Kind = "vqa"

    def __init__(self, count: int = 1000, seed: int = 0) -> None:
        _check_count(count)
        self.left_out: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._splits = {"train": count, "val": max(1, count // 10), "test": max(1, count // 5)}
        self._seed = seed

    def __iter__(self) -> Iterator[ImageRecord]:
        for split, count in self._splits.items():
            for index in range(count):
                image, findings = _encoded(self._seed, split, index)
                rng = np.random.default_rng([self._seed, 7, SPLITS[split], index])
                rows = questions(findings, rng)[:8]
                yield ImageRecord(
                    key=f"phantom-{index:06d}",
                    split=split,
                    image=image,
                    questions=tuple(
                        Question(
                            id=f"{index}-{i}",
                            question=question,
                            answer=answer,
                            closed=closed,
                            metadata={"question_type": kind, "modality": findings.modality, "organ": findings.region},
                        )
                        for i, (question, answer, closed, kind) in enumerate(rows)
                    ),
                )


__all__ = ["SIDE", "Findings", "Phantom", "PhantomCaptions", "PhantomQuestions", "draw_phantom"]
