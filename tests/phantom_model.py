"""A small model that really answers questions about the lesion of a phantom, trained once a test session."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.sources.phantoms import Phantom, draw_phantom
from tests.launching import launch

SEED = 0
TEST_IMAGES = 60
"""Phantoms of the split test that are looked at; about 60 % have a lesion."""
SETTINGS = [
    "--preset=tiny",
    "vision.depth=1",
    "vision.width=64",
    "text.width=64",
    "text.intermediate=128",
    "text.initializer_range=0.08",
    "optimizer.lr=2e-3",
    "optimizer.clip=0",
    "optimizer.warmup_epochs=1.0",
    "answering.distillation=0",
    "data.crop_scale=0.98,1",
    "data.workers=0",
    "training.batch=32",
    "training.epochs=18",
    "training.precision=float32",
    "training.save_every=5000",
    "training.log_every=100",
]


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


def write_as_slake(folder: Path, train: int) -> None:
    """Phantoms with a lesion in SLAKE's layout, the box of the lesions in detection.json."""
    for file, split, count in (("train", "train", train), ("validate", "val", 5), ("test", "test", TEST_IMAGES)):
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


def train(folder: Path, images: int = 700) -> Path:
    """Data, shards, tokenizer and a finetuning run in ``folder``; returns the run. A minute or two of one core."""
    from m2i2.data.text.tokenizer import train_tokenizer

    write_as_slake(folder / "slake", images)
    assert make_shards(["vqa", "slake", str(folder / "slake"), "--output", str(folder / "shards"), "--side", "64"]) == 0
    texts = [text for p in phantoms("train", 60) for row in lesion_questions(p) for text in row]
    train_tokenizer(texts, 300).save(folder / "tokenizer")
    words = ["--shards", "shards", "--output", "run", *SETTINGS, "start.tokenizer=tokenizer"]
    done = launch("finetune", words, folder, seconds=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"
