"""What the demo model is asked in the tests: questions about the lesion of a phantom."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m2i2.data.sources.phantoms import Phantom, draw_phantom

SEED = 0
TEST_IMAGES = 60
"""Phantoms of the split test that are looked at; about 60 % have a lesion."""


def lesion_questions(phantom: Phantom) -> list[tuple[str, str]]:
    """What the model is asked, with the answers."""
    f = phantom.findings
    return [
        ("what kind of lesion is shown?", str(f.lesion)),
        ("on which side is the lesion?", f.side),
        ("is the lesion in the upper or in the lower part?", f.level),
    ]


def phantoms(split: str, count: int) -> list[Phantom]:
    """The first ``count`` phantoms of a split, without those that show no lesion."""
    return [p for p in (draw_phantom(SEED, split, i) for i in range(count)) if p.findings.lesion]


def write_as_slake(folder: Path) -> None:
    """Phantoms with a lesion in SLAKE's layout, the box of the lesions in detection.json."""
    for file, split, count in (("train", "train", 5), ("validate", "val", 5), ("test", "test", TEST_IMAGES)):
        rows: list[dict[str, Any]] = []
        for number, phantom in enumerate(phantoms(split, count)):
            name = f"{split}{number}"
            image = folder / "imgs" / name
            image.mkdir(parents=True)
            Image.fromarray(phantom.image).convert("RGB").save(image / "source.jpg", quality=92)
            ys, xs = np.nonzero(phantom.lesion_mask)
            box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
            (image / "detection.json").write_text(json.dumps([{"Lesion": box}]))
            for question, answer in lesion_questions(phantom):
                row = {"qid": len(rows), "img_name": f"{name}/source.jpg", "question": question, "answer": answer}
                rows.append({**row, "q_lang": "en", "answer_type": "OPEN", "location": phantom.findings.region})
        (folder / f"{file}.json").write_text(json.dumps(rows))
