"""What one browser has uploaded: the images of a study in their order, each with its own questions and answers."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from m2i2.inference.answering import Answer

IMAGES = 50
"""Most images of a study."""
QUESTIONS = 20
"""Questions that an image keeps; of more, the oldest are forgotten."""


@dataclass(frozen=True)
class Asked:
    """A question with its answers."""

    question: str
    answers: list[Answer]
    cam: np.ndarray
    """[side, side], where in the image the likeliest answer comes from."""


@dataclass
class Case:
    """An image and what was asked about it."""

    path: Path
    thumbnail: str
    """data: address."""
    asked: list[Asked] = field(default_factory=list)
    """The oldest first."""
    at: int = 0
    """The number of the question that is shown."""

    @property
    def name(self) -> str:
        """What the page calls the image."""
        return self.path.name

    @property
    def shown(self) -> Asked | None:
        """The question that is shown; None where nothing was asked yet."""
        return self.asked[self.at] if self.asked else None

    def add(self, asked: Asked) -> None:
        """Keep a new question, and show it; the same question asked again replaces its answers."""
        self.asked = [*(old for old in self.asked if old.question != asked.question), asked][-QUESTIONS:]
        self.at = len(self.asked) - 1


@dataclass
class Study:
    """Images, one of which is shown."""

    cases: list[Case] = field(default_factory=list)
    at: int = 0

    @property
    def case(self) -> Case | None:
        """The image that is shown; None where there is none."""
        return self.cases[self.at] if self.cases else None

    def go(self, at: int) -> None:
        """Show another image; before the first is the first, behind the last is the last."""
        self.at = max(0, min(at, len(self.cases) - 1))

    def remove(self) -> Case | None:
        """Take out the image that is shown, and return it."""
        case = self.case
        if case is not None:
            self.cases.remove(case)
            self.go(self.at)
        return case
