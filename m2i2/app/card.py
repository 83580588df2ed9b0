"""What the page says of its model: how large it is, how it was trained, and what it scored."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from m2i2.errors import M2I2Error
from m2i2.evaluation.baselines import BASELINES
from m2i2.files import MOST_JSON, read_bytes, read_object
from m2i2.ownership import inside
from m2i2.workflows.answering import Loaded

_MOST_TEXT = 1 << 16
"""Bytes of a model folder's README.md that are shown."""


@dataclass(frozen=True)
class Card:
    """A model card."""

    name: str
    facts: list[tuple[str, str]]
    text: str = ""
    """README.md of a model folder, without its front matter."""
    notice: str = ""
    """What must stand on the page itself."""


def card_of(loaded: Loaded, source: Path, candidates: int, notice: str = "") -> Card:
    """The card of a model that was loaded from ``source``, and chooses among so many ``candidates`` (0: it writes its answers)."""
    vision, text = loaded.config.vision, loaded.config.text
    step, layers = loaded.trained["step"], f"{vision.depth} layer{'s' if vision.depth != 1 else ''}"
    size = sum(p.numel() for p in loaded.model.parameters())
    chooses = f"chosen among {candidates:,} candidates" if candidates else "written by beam search"
    begun = [
        Path(part).name for part in (loaded.config.start.checkpoint, loaded.config.start.image, loaded.config.start.text) if part
    ]
    facts = [
        (
            "Model",
            f"preset {loaded.config.preset}, {size / 1e6:,.1f} million parameters" + (f", {step}" if step != source.name else ""),
        ),
        ("Image", f"{vision.image_size} x {vision.image_size} pixels in patches of {vision.patch_size}; {layers}"),
        ("Text", f"{text.depth} layers, the upper {text.depth - text.fusion_layer} of which also read the image"),
        ("Answers", chooses),
        ("Trained", f"protocol {loaded.trained['protocol']}" + (f", from {' and '.join(begun)}" if begun else "")),
        *(("Scored", line) for line in _scores(source)),
    ]
    return Card("the demo model" if notice else source.name, facts, _readme(source), notice)


def _scores(run: Path) -> Iterator[str]:
    """A sentence for each evaluation in the folder of a run."""
    for path in sorted(run.glob("*/results.json")) if run.is_dir() else []:
        try:
            if not inside(path, run):
                continue
            results = read_object(path, "the results of an evaluation", most=MOST_JSON)
            view = next(iter(results["views"].values()))
            model = view["model"]["overall"]
            blind = max(view[who]["overall"]["accuracy"] for who in BASELINES if who in view)
            low, high = model["interval"]
            yield (
                f"{model['accuracy']:.1f} % [{low:.1f}, {high:.1f}] of {model['total']:,} questions "
                f"({results['shards']['source']}, {results['split']}); from the question alone: {blind:.1f} %"
            )
        except (M2I2Error, OSError, LookupError, TypeError, ValueError, StopIteration, AttributeError):
            continue  # the report says what is wrong with it


def _readme(folder: Path) -> str:
    """README.md of a folder without its front matter; empty where there is none that can be read."""
    path = folder / "README.md"
    try:
        if not (folder.is_dir() and inside(path, folder)):
            return ""
        text = read_bytes(path, _MOST_TEXT).decode()
    except (M2I2Error, OSError, ValueError):
        return ""
    return text.split("\n---\n", 1)[-1].strip() if text.startswith("---\n") else text.strip()
