"""The demo model: it ships with the package, so that a question can be answered before anything has been trained.

It is trained on synthetic images (`m2i2.data.sources.phantoms`) by ``python -m m2i2.demo.build FOLDER``. ``model/build.json`` holds
the settings, the scores, and the hash of every file.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from m2i2.data.sources.phantoms import draw_phantom
from m2i2.terminal import say

if TYPE_CHECKING:
    from m2i2.hub import M2I2ForVisualQuestionAnswering

FOLDER = Path(__file__).with_name("model")
"""The model: a Hugging Face folder."""
ANSWERS = FOLDER / "answers.txt"
"""Every answer that the model was trained on, one per line."""
NOTICE = "The demo model was trained on synthetic images only: it shows how the program works and says nothing of medical images."


def demo_model() -> "M2I2ForVisualQuestionAnswering":
    """The demo model. `NOTICE` goes to the standard error."""
    from m2i2.hub import M2I2ForVisualQuestionAnswering

    say(NOTICE, file=sys.stderr)
    return M2I2ForVisualQuestionAnswering.from_pretrained(FOLDER)


def demo_image(number: int = 0) -> Image.Image:
    """A synthetic image that the model was not trained on, 128 x 128 pixels RGB; ``number``: which one, from 0."""
    return Image.fromarray(draw_phantom(0, "test", number).image).convert("RGB")
