"""A linear probe of image encoders, from their checkpoints to a table."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from m2i2.backends.choice import install
from m2i2.config import CacheConfig, PretrainingConfig
from m2i2.data.images.transforms import EvaluationTransform, normalise
from m2i2.data.records import Question
from m2i2.data.shards.split import ShardSplit
from m2i2.errors import M2I2Error
from m2i2.evaluation.probe import TARGETS, Labelled, label_of, probe
from m2i2.evaluation.results import with_interval
from m2i2.files import write_json
from m2i2.hub.conversion import read
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.start import start_pretraining
from m2i2.models.vision import VisionTransformer
from m2i2.models.weights import load
from m2i2.precision import autocast, autocast_dtype
from m2i2.provenance import provenance
from m2i2.terminal import say
from m2i2.workflows.run_folder import resolved

FEATURES = ("cls", "mean")
"""The [CLS] state, which the contrast reads, and the mean of the patches' states."""


@dataclass(frozen=True, kw_only=True)
class AskedImages:
    """Which images are probed, and for what."""

    shards: str
    """A folder of question shards, or its URL."""
    train: str = "train"
    test: str = "test"
    targets: Sequence[str] = TARGETS
    batch: int = 32
    precision: str = "auto"


@dataclass(frozen=True)
class _Images:
    """The images of a split, each once."""

    split: ShardSplit
    items: list[int]
    """An item of each image."""
    keys: list[str]
    questions: list[list[Question]]

    @classmethod
    def of(cls, split: ShardSplit) -> "_Images":
        found: dict[str, tuple[int, str, list[Question]]] = {}
        for asked in split.questions():
            found.setdefault(asked.image_sha256, (asked.item, asked.key, []))[2].append(asked.question)
        rows = list(found.values())
        return cls(split, [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])

    def labelled(self, features: Tensor, target: str) -> Labelled:
        """The images that have a label, with it."""
        labels = [label_of(questions, target) for questions in self.questions]
        there = [i for i, label in enumerate(labels) if label is not None]
        return Labelled(features[there], [str(labels[i]) for i in there], [self.keys[i] for i in there])


def encoders(source: Path, before: bool, tokenizer: str = "") -> dict[str, VisionTransformer]:
    """The image encoder of a model in any format and, with ``before``, as it was before its pretraining's first step."""
    weights = read(source, tokenizer)
    found = VisionTransformer(weights.settings.vision, with_decoder=not weights.answers)
    prefix = "visual_encoder."
    state = {name.removeprefix(prefix): tensor for name, tensor in weights.student.items() if name.startswith(prefix)}
    load(found, state, f"the image encoder of {source}")
    made = {str(source): found}
    if before:
        config = weights.settings
        if not isinstance(config, PretrainingConfig):
            raise M2I2Error(f"{source} is an answering model; --before is for a pretraining run, whose settings name its start.")
        torch.manual_seed(config.training.seed)
        model = PretrainingModel(config.vision, config.text, config.objectives)
        for line in start_pretraining(model, resolved(config.start)):
            say(f"before: {line}")
        made["starting weights"] = model.visual_encoder
    return made


def probe_encoders(
    models: dict[str, VisionTransformer], asked: AskedImages, output: Path, cache: CacheConfig | None = None
) -> dict[str, Any]:
    """Probe each encoder for each target, show the table and write it to ``output`` (JSON); returns what it holds."""
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    install(device)
    parts = [_Images.of(ShardSplit.open(asked.shards, name, "vqa", cache)) for name in (asked.train, asked.test)]
    found: dict[str, Any] = {}
    table = Table(title=f"Linear probe of {asked.shards}: {asked.train} to {asked.test}", title_justify="left")
    for column in ("target", "encoder", "features"):
        table.add_column(column)
    for column in ("accuracy, %", "balanced, %", "most frequent, %", "classes", "test images"):
        table.add_column(column, justify="right")
    for name, model in models.items():
        features = [_features(model.to(device).eval(), part, asked, device) for part in parts]
        for target in asked.targets:
            for number, kind in enumerate(FEATURES):
                train, test = (part.labelled(mine[number], target) for part, mine in zip(parts, features, strict=True))
                row = probe(train, test)
                found.setdefault(target, {}).setdefault(name, {})[kind] = row
                figures = (with_interval(row), f"{row['balanced_accuracy']:.1f}", f"{row['most_frequent']:.1f}")
                table.add_row(target, name, kind, *figures, str(row["classes"]), str(row["test_images"]))
    Console().print(table)
    results: dict[str, Any] = {
        "shards": asked.shards,
        "train": asked.train,
        "test": asked.test,
        "targets": found,
        "seconds": round(time.monotonic() - started, 2),
        **provenance(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, results, ascii=False)
    say(f"written to {output}")
    return results


@torch.inference_mode()
def _features(model: VisionTransformer, images: _Images, asked: AskedImages, device: torch.device) -> tuple[Tensor, Tensor]:
    """[n, D] each of `FEATURES`, float32 on the CPU."""
    transform, dtype = EvaluationTransform(size=model.config.image_size), autocast_dtype(asked.precision, device)
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(images.items), asked.batch):
        samples = [images.split.read(item) for item in images.items[start : start + asked.batch]]
        pixels = torch.stack([transform(sample.image, sample.key) for sample in samples]).to(device)
        with autocast(device, dtype):
            states = model(normalise(pixels)).states.float().cpu()
        found.append((states[:, 0], states[:, 1:].mean(1)))
    cls, mean = (torch.cat(parts) for parts in zip(*found, strict=True))
    return cls, mean
