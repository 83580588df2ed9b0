"""A linear probe: what a frozen image encoder knows, read off its features by logistic regression."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.data.records import Question
from m2i2.data.text.cleaning import scored_answer
from m2i2.errors import M2I2Error
from m2i2.evaluation.fitting import minimise
from m2i2.evaluation.scoring import share_interval

TARGETS = ("modality", "organ", "plane")
FEWEST = 10
"""Training images of a class; rarer ones are left out."""
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
_MODALITIES = (
    ("mammogram", r"mammo"),
    ("nuclear medicine", r"nm\b|pet\b|nuclear"),
    ("fluoroscopy", r"(bas|be|ugi|sbft)\b"),
    ("angiogram", r"an\b|angiogram|venogram"),
    ("ultrasound", r"us\b|ultrasound"),
    ("x-ray", r"(xr|xray)\b"),
    ("CT", r"(ct|cta)\b"),
    ("MRI", r"(mr|mra|mri|t1|t2|flair)\b"),
)
"""How the answers about modality begin in VQA-Med 2019 and SLAKE; others (contrast, iv ...) tell of none."""


def label_of(questions: Iterable[Question], target: str) -> str | None:
    """What the questions about an image say of its ``target`` (of `TARGETS`), None where they say nothing.

    It is the most frequent of what the data set states beside the questions (SLAKE's modality and organ), else of the answers to
    open questions of that type (VQA-Med's categories, SLAKE's plane). Modalities are coarse: CT with contrast is CT.
    """
    asked = list(questions)
    stated = [q.metadata.get(target, "") for q in asked]
    answers = [q.answer for q in asked if not q.closed and q.metadata.get("question_type", "").strip().lower() == target]
    for texts in (stated, answers):
        counts = Counter(label for text in texts if text.strip() and (label := _label(text, target)))
        if counts:
            return counts.most_common(1)[0][0]
    return None


def _label(text: str, target: str) -> str | None:
    form = scored_answer(text, "fixed")
    if target != "modality":
        return form
    return next((name for name, begins in _MODALITIES if re.match(begins, form)), None)


@dataclass(frozen=True)
class Labelled:
    """Features [n, D] of images with the label and the name of each."""

    features: Tensor
    labels: Sequence[str]
    images: Sequence[str]


def probe(train: Labelled, test: Labelled) -> dict[str, Any]:
    """Logistic regression on the standardised features of ``train``, scored on ``test``; percent, 95 % intervals over images.

    The penalty is chosen on every fifth training image, and the fit made again on all. M2I2Error where fewer than two classes
    have `FEWEST` training images.
    """
    counts = Counter(train.labels)
    names = sorted(name for name, count in counts.items() if count >= FEWEST)
    if len(names) < 2:
        raise M2I2Error(
            f"A probe needs two classes of at least {FEWEST} training images each; there are {dict(counts.most_common(5))}. Name "
            f"shards whose questions tell it, or other --targets."
        )
    x, y = _chosen(train, names)
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    x, held = (x - mean) / deviation, torch.arange(len(x)) % 5 == 0
    right = [float((_fit(x[~held], y[~held], p)(x[held]).argmax(1) == y[held]).float().mean()) for p in _PENALTIES]
    penalty = _PENALTIES[int(np.argmax(right))]
    tested = [i for i, label in enumerate(test.labels) if label in names]
    if not tested:
        raise M2I2Error(f"No test image has one of the labels {', '.join(names)}; name another split with --test.")
    asked, true = _chosen(test, names)
    given = _fit(x, y, penalty)((asked - mean) / deviation).argmax(1)
    hits = (given == true).float().tolist()
    most = int(torch.bincount(y).argmax())
    by_class = {name: float((given[true == n] == n).float().mean()) for n, name in enumerate(names) if bool((true == n).any())}
    return {
        "classes": len(names),
        "train_images": len(y),
        "test_images": len(true),
        "left_out": len(train.labels) - len(y) + len(test.labels) - len(true),
        "accuracy": round(100 * float(np.mean(hits)), 2),
        "interval": [round(100 * end, 2) for end in share_interval(hits, [test.images[i] for i in tested])],
        "balanced_accuracy": round(100 * float(np.mean(list(by_class.values()))), 2),
        "most_frequent": round(100 * float((true == most).float().mean()), 2),
        "penalty": penalty,
        "recall": {name: round(100 * share, 2) for name, share in by_class.items()},
    }


def _chosen(labelled: Labelled, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The features and class numbers of the images whose label is one of ``names``."""
    rows = [i for i, label in enumerate(labelled.labels) if label in names]
    return labelled.features[rows].float(), torch.tensor([names.index(labelled.labels[i]) for i in rows])


def _fit(x: Tensor, y: Tensor, penalty: float) -> torch.nn.Linear:
    """Multinomial logistic regression with a squared penalty on the weights, by L-BFGS from zero."""
    layer = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    minimise(lambda: F.cross_entropy(layer(x), y) + penalty * layer.weight.square().sum(), layer.parameters(), max_iter=100)
    return layer.requires_grad_(False)
