"""``python -m m2i2.demo.build FOLDER``: train the demo model and write the folder that ships with the package."""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2i2.config import FinetuningConfig
from m2i2.data.records import ImageRecord
from m2i2.data.shards.building import build as build_shards
from m2i2.data.shards.encoding import Encoding
from m2i2.data.shards.split import ShardSplit
from m2i2.data.sources.phantoms import PhantomQuestions
from m2i2.data.text.tokenizer import train_tokenizer
from m2i2.demo import NOTICE
from m2i2.errors import M2I2Error
from m2i2.exits import guarded
from m2i2.files import sha256_of, write_json, write_text
from m2i2.hub.conversion import Weights, read, write
from m2i2.options import override
from m2i2.presets import finetuning_preset
from m2i2.terminal import say
from m2i2.workflows.answering import load_model
from m2i2.workflows.evaluation import Asked, evaluate
from m2i2.workflows.finetuning import finetune

IMAGES = 1000
"""Synthetic images to train on."""
QUESTIONS = (
    "what kind of lesion is shown?",
    "on which side is the lesion?",
    "is the lesion in the upper or in the lower part?",
    "is there a lesion?",
    "which body region is shown?",
    "what is the imaging modality?",
)
"""What the model learns to answer: few questions, so that minutes of one core are enough."""
TOKENS = 300
"""Largest vocabulary."""
SETTINGS = (
    "vision.depth=1",
    "vision.width=64",
    "text.width=64",
    "text.intermediate=128",
    "text.initializer_range=0.08",
    "optimizer.lr=2e-3",
    "optimizer.clip=0",
    "optimizer.warmup_epochs=1.0",
    "answering.distillation=0",
    "answering.normalisation=fixed",
    "data.crop_scale=0.98,1",
    "data.workers=0",
    "training.epochs=36",
    "training.precision=float32",
    "training.log_every=50",
)
"""Beside those of the preset tiny."""
RECORD = "build.json"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m m2i2.demo.build", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder, such as m2i2/demo/model")
    arguments = parser.parse_args(argv)
    return guarded(lambda: build(arguments.folder))


class _Asked(PhantomQuestions):
    """Phantoms with those of their questions that are in `QUESTIONS`; without the images that have none."""

    def __iter__(self) -> Iterator[ImageRecord]:
        for record in super().__iter__():
            if kept := tuple(row for row in record.questions if row.question in QUESTIONS):
                yield replace(record, questions=kept)


def build(folder: Path, images: int = IMAGES, settings: Sequence[str] = SETTINGS) -> int:
    """Draw, train, score, and write the new ``folder``; ``images``: how many to train on. Minutes of one core."""
    if folder.exists():
        raise M2I2Error(f"{folder} is there already; remove it first, or name a new folder.")
    with tempfile.TemporaryDirectory(prefix="m2i2-demo-") as temporary:
        work = Path(temporary)
        source = _Asked(images)
        build_shards(source, work / "shards", Encoding(side=64), options={"count": images, "seed": 0})
        drawn = ShardSplit.open(work / "shards", "train", "vqa")
        answers = sorted({asked.question.answer for asked in drawn.questions()})
        train_tokenizer(drawn.texts(), TOKENS).save(work / "tokenizer")
        if code := finetune(_config(work, settings), work / "run"):
            return code
        results = evaluate(load_model(work / "run"), Asked(shards=str(work / "shards")), work / "evaluation")
        write(_without_paths(read(work / "run")), folder, "hugging-face", results)
    write_text(folder / "answers.txt", "".join(f"{answer}\n" for answer in answers))
    card = (folder / "README.md").read_text(encoding="utf-8")
    write_text(folder / "README.md", card.replace("\n## Use", f"\n**{NOTICE}**\n\n## Use", 1))
    _record(folder, images, settings, results)
    say(f"written to {folder}")
    return 0


def _config(work: Path, settings: Sequence[str]) -> FinetuningConfig:
    config = override(finetuning_preset("tiny"), settings)
    data = replace(config.data, shards=(str(work / "shards"),))
    return replace(config, data=data, start=replace(config.start, tokenizer=str(work / "tokenizer")))


def _without_paths(weights: Weights) -> Weights:
    """The same model, whose settings name no folder of the machine that built it."""
    settings: Any = weights.settings
    start, data = replace(settings.start, tokenizer=""), replace(settings.data, shards=())
    return replace(weights, settings=replace(settings, start=start, data=data))


def _record(folder: Path, images: int, settings: Sequence[str], results: dict[str, Any]) -> None:
    """build.json: how the folder was made, what it scored, and the SHA-256 of every other file in it."""
    import torch

    from m2i2 import __version__

    (view,) = results["views"].values()
    record = {
        "command": "python -m m2i2.demo.build",
        "images": images,
        "preset": "tiny",
        "settings": list(settings),
        "versions": {"m2i2": __version__, "torch": torch.__version__},
        "questions": view["model"]["overall"]["total"],
        "accuracy": {who: view[who]["overall"]["accuracy"] for who in ("model", "question_only", "most_frequent")},
        "sha256": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    write_json(folder / RECORD, record)


if __name__ == "__main__":
    raise SystemExit(main())
