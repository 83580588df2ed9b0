"""``tools/gradcam.py``: where in an image an answer comes from, as pictures, or measured against SLAKE's boxes."""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2i2.errors import M2I2Error
from m2i2.exits import guarded
from m2i2.files import MOST_JSON, parse_json, read_bytes, replacing, write_json
from m2i2.terminal import say

if TYPE_CHECKING:
    import numpy as np

    from m2i2.data.records import Question

DESCRIPTION = """Show where in an image an answer comes from: Grad-CAM over the cross-attention of the multimodal encoder.

With --image and --question it answers the question and writes overlays. With --slake it asks every test question that is
about something which the data set has boxes for, and measures how much of the maps lies inside them."""

EXAMPLES = """examples:
  python tools/gradcam.py --checkpoint runs/rad --image chest.png --question "is there a nodule?" --output nodule
  python tools/gradcam.py --checkpoint runs/rad --image chest.png --question "where is it?" --answer "left lung" --each-token
  python tools/gradcam.py --checkpoint runs/slake --slake data/slake --output runs/slake/localisation.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="gradcam.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="MODEL", help="a finetuning run, a checkpoint, or a Hugging Face folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", type=Path, metavar="FILE", help="PNG, JPEG, DICOM ...")
    what.add_argument("--slake", type=Path, metavar="DIR", help="SLAKE as published, with detection.json beside each image")
    add("--question", metavar="TEXT", help="what to ask about the image")
    add("--answer", metavar="TEXT", help="the answer to explain (default: the model's own)")
    add("--candidates", type=Path, metavar="FILE", help="answers to choose from: one per line, a JSON list, or question shards")
    add("--layer", type=int, metavar="N", help="the multimodal layer to explain, from 0 (default: the mean of all)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--token", type=int, metavar="N", help="explain this token of the answer, from 0 (default: all of it)")
    which.add_argument("--each-token", action="store_true", help="one overlay more for every token of the answer")
    add("--output", type=Path, metavar="PATH", help="folder of the overlays (default: gradcam); with --slake, the JSON file")
    arguments = parser.parse_args(argv)
    if arguments.image and not arguments.question:
        parser.error("--image needs a --question")
    return guarded(lambda: _slake(arguments) if arguments.slake else _explain(arguments))


def _explain(arguments: argparse.Namespace) -> int:
    from m2i2.inference.answering import open_image
    from m2i2.inference.overlay import overlay, with_legend
    from m2i2.workflows.answering import load_model, read_candidates

    candidates = read_candidates(arguments.candidates) if arguments.candidates else ()
    answerer, image = load_model(arguments.checkpoint).answerer(candidates), open_image(arguments.image)
    given = answerer.answer(image, arguments.question)
    answer = arguments.answer or given[0][0]
    tokens = answerer.tokenizer.tokens(answerer.answer_tokens(answer)[1:-2])
    wanted: dict[str, int | None] = {"answer": arguments.token}
    if arguments.each_token:
        wanted |= {f"token-{i}-{re.sub(r'[^0-9a-z]', '', token)}": i for i, token in enumerate(tokens)}
    folder = arguments.output or Path("gradcam")
    folder.mkdir(parents=True, exist_ok=True)
    for name, token in wanted.items():
        cam = answerer.explain(image, arguments.question, answer, arguments.layer, token)
        with replacing(folder / f"{name}.png") as file:
            with_legend(overlay(image, cam.map)).save(file, "PNG")
    report: dict[str, Any] = {
        "checkpoint": str(arguments.checkpoint),
        "image": str(arguments.image),
        "question": arguments.question,
        "best": [[text, round(probability, 6)] for text, probability in given],
        "explained": answer,
        "tokens": tokens,
        "layer": "mean of all" if arguments.layer is None else arguments.layer,
        "token": "all" if arguments.token is None else arguments.token,
    }
    write_json(folder / "gradcam.json", report, ascii=False)
    for text, probability in given:
        say(f"{probability:6.3f}  {text}")
    say(f"overlays of {answer!r}: {', '.join(f'{name}.png' for name in wanted)} in {folder}")
    return 0


def _slake(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from m2i2.data.sources.slake import Slake
    from m2i2.evaluation.scoring import is_correct
    from m2i2.inference.answering import open_image
    from m2i2.inference.localisation import localise
    from m2i2.workflows.answering import load_model, read_candidates

    records = list(Slake(arguments.slake))
    if arguments.candidates:
        candidates = read_candidates(arguments.candidates)
    else:
        candidates = tuple(q.answer for r in records if r.split in ("train", "test") for q in r.questions)
    answerer = load_model(arguments.checkpoint).answerer(candidates)
    layers: list[int | None] = [None, *range(answerer.model.text.depth - answerer.model.text.fusion_layer)]
    layers = layers if arguments.layer is None else [arguments.layer]
    rows: list[dict[str, Any]] = []
    console = Console(stderr=True)
    tests = [record for record in records if record.split == "test"]
    for record in track(tests, "images", console=console) if console.is_terminal else tests:
        assert isinstance(record.image, Path)
        image, boxes = open_image(record.image), _boxes(record.image.parent / "detection.json")
        for question, labels, mask in _asked(record.questions, boxes, image.size):
            given = answerer.answer(image, question.question)[0][0]
            correct = is_correct(given, question.answer, answerer.normalisation)
            row = {"id": question.id, "question": question.question, "boxes": labels, "given": given, "correct": correct}
            for layer in layers:
                found = localise(answerer.explain(image, question.question, given, layer, arguments.token).map, mask)
                rows.append({**row, "layer": "all" if layer is None else layer, **asdict(found), "gain": found.gain})
    if not rows:
        raise M2I2Error(f"No test question in {arguments.slake} names anything that its detection.json has a box for.")
    summary = [_summary(rows, "all" if layer is None else layer, correct) for layer in layers for correct in (True, False)]
    table = Table(title="Grad-CAM inside SLAKE's boxes of what the question or its answer names", title_justify="left")
    for name in ("layer", "answers", "questions", "mass in boxes", "chance", "mean gain", "median gain", "hottest patch inside"):
        table.add_column(name, justify="right")
    for line in summary:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in line.values()))
    Console().print(table)
    output = arguments.output or Path("localisation.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"summary": summary, "rows": rows}, ascii=False)
    say(f"written to {output}")
    return 0


def _boxes(path: Path) -> dict[str, list[tuple[float, float, float, float]]]:
    """Label -> boxes (left, top, width, height; pixels) of an image; empty without a file."""
    if not path.exists():
        return {}
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    try:
        for entry in parse_json(read_bytes(path, MOST_JSON)):
            for label, (left, top, width, height) in entry.items():
                found.setdefault(str(label), []).append((float(left), float(top), float(width), float(height)))
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise M2I2Error(f"{path} is not a list of labelled boxes: {e}.") from e
    return found


def _asked(
    questions: "Sequence[Question]", boxes: dict[str, list[tuple[float, float, float, float]]], size: tuple[int, int]
) -> "Iterator[tuple[Question, list[str], np.ndarray]]":
    """The questions that name a boxed thing, in themselves or in their answer, with its labels and a mask of its boxes."""
    import numpy as np

    for question in questions:
        words = f"{question.question} {question.answer}".lower()
        labels = [label for label in boxes if re.search(rf"\b{re.escape(label.lower())}\b", words)]
        mask = np.zeros((size[1], size[0]), dtype=bool)
        for left, top, width, height in (box for label in labels for box in boxes[label]):
            mask[max(0, int(top)) : int(np.ceil(top + height)), max(0, int(left)) : int(np.ceil(left + width))] = True
        if mask.any():
            yield question, labels, mask


def _summary(rows: list[dict[str, Any]], layer: int | str, correct: bool) -> dict[str, Any]:
    from statistics import mean, median

    chosen = [row for row in rows if row["layer"] == layer and row["correct"] == correct]
    numbers = {"mass": 0.0, "chance": 0.0, "mean gain": 0.0, "median gain": 0.0, "hit": 0.0}
    if chosen:
        numbers = {name: mean(row[name] for row in chosen) for name in ("mass", "chance")}
        gains = [row["gain"] for row in chosen]
        numbers |= {"mean gain": mean(gains), "median gain": median(gains), "hit": mean(float(row["hit"]) for row in chosen)}
    return {"layer": layer, "answers": "right" if correct else "wrong", "questions": len(chosen), **numbers}
