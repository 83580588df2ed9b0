"""What the leakage audit finds of images known to be the same, what it mistakes for the same, and what it costs.

    python benchmarks/leakage.py alarms IMAGES OTHERS --images 1000   # unrelated: the first of the one, the last of the other
    python benchmarks/leakage.py planted IMAGES... --images 100       # altered copies, each kind sought among the originals
    python benchmarks/leakage.py numbers IMAGES OTHERS --images 100   # truth: the number in the file name; and --images others
    python benchmarks/leakage.py cost IMAGES... --images 10000        # seconds by stage: every other image against the rest

Folders of JPEG or PNG files, and folders in them. Times are processor time, so that a busy machine does not count.
"""

import argparse
import io
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from m2i2.backends.heap import keep_freed_memory
from m2i2.evaluation.feature_search import FeatureSearch
from m2i2.evaluation.leakage import AuditedImage, Pair, audited, matches
from m2i2.evaluation.whole_images import details, partners

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def files(folders: Sequence[Path]) -> list[Path]:
    """The images of the folders, and of those in them, in the order of their names."""
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def read(paths: Sequence[Path]) -> list[AuditedImage]:
    return [audited(path.stem, str(path), Image.open(path).convert("RGB")) for path in paths]


def evenly(paths: Sequence[Path], count: int) -> list[Path]:
    return [paths[n] for n in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)]


def cropped(share: float) -> Change:
    """Up to ``share`` of width and height cut off, somewhere."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        left, top = rng.uniform(0, share, 2)
        width, height = image.size
        return image.crop(
            (round(left * width), round(top * height), round((1 + left - share) * width), round((1 + top - share) * height))
        )

    return change


def tones(curve: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Grey values (0 to 1) under a curve."""
    return lambda image, rng: Image.fromarray((255 * np.clip(curve(np.asarray(image) / 255), 0, 1)).astype(np.uint8))


def turned(degrees: float) -> Change:
    return lambda image, rng: image.rotate(degrees, Image.Resampling.BICUBIC, expand=degrees % 90 == 0)


def recoded(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=int(rng.integers(50, 76)))
    return Image.open(out)


def rescaled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = rng.uniform(0.6, 1)
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BILINEAR)


def padded(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    left, top, right, bottom = (round(side * share) for side, share in zip(image.size * 2, rng.uniform(0.05, 0.25, 4), strict=True))
    return ImageOps.expand(image, (left, top, right, bottom), int(rng.choice([0, 255])))


def captioned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    copy = image.copy()
    draw = ImageDraw.Draw(copy)
    for text in ("R  PORTABLE", "12:31 SUPINE", "Acc 4711"):
        x, y = rng.uniform(0, 0.7) * image.width, rng.uniform(0, 0.9) * image.height
        draw.text((x, y), text, fill=255, font_size=max(8, image.height // 16))
    return copy


def two_panels(image: Image.Image, other: Image.Image) -> Image.Image:
    """``image`` with another of equal height on its right."""
    other = other.resize((max(1, round(other.width * image.height / other.height)), image.height))
    panels = Image.new("L", (image.width + other.width, image.height))
    panels.paste(image, (0, 0))
    panels.paste(other, (image.width, 0))
    return panels


CHANGES: dict[str, Change] = {
    "re-encoded (JPEG 50-75)": recoded,
    "rescaled to 60-100 %": rescaled,
    "cropped by 4 %": cropped(0.04),
    "cropped by 10 %": cropped(0.10),
    "cropped by 20 %": cropped(0.20),
    "cropped by 40 %": cropped(0.40),
    "padded": padded,
    "captioned": captioned,
    "turned by 3 degrees": turned(3),
    "turned by 90 degrees": turned(90),
    "turned by 180 degrees": turned(180),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "inverted": lambda image, rng: ImageOps.invert(image),
    "windowed": tones(lambda grey: (grey - 0.2) / 0.5),
    "equalised": lambda image, rng: ImageOps.equalize(image),
    "gamma 2": tones(np.square),
    "mirrored, cropped by 40 %": lambda image, rng: cropped(0.40)(ImageOps.mirror(image), rng),
    "padded, re-encoded": lambda image, rng: recoded(padded(image, rng), rng),
}


def told(pairs: Sequence[Pair], first: Sequence[AuditedImage], second: Sequence[AuditedImage]) -> None:
    for pair in sorted(pairs, key=lambda pair: -pair.correlation)[:20]:
        print(
            f"  {first[pair.first].stored_sha256} {second[pair.second].stored_sha256} {pair.kind} {pair.correlation} {pair.change}"
        )


def alarms(folders: Sequence[Path], count: int) -> None:
    started = time.process_time()
    first, second = read(files(folders[:1])[:count]), read(files(folders[1:])[-count:])
    ready = time.process_time()
    found = matches(first, second)
    print(f"{len(first) * len(second)} pairs, {len(found)} called the same")
    told(found, first, second)
    seconds = time.process_time() - ready
    print(f"{1000 * (ready - started) / (len(first) + len(second)):.1f} ms to read an image, {seconds:.1f} s to compare the sets")


def planted(folders: Sequence[Path], count: int, kind: str = "") -> None:
    paths = evenly(files(folders), count)
    originals, rng = read(paths), np.random.default_rng(0)
    images = [Image.open(path).convert("L") for path in paths]
    kinds = {name: [change(image, rng) for image in images] for name, change in CHANGES.items()}
    kinds["two panels"] = [two_panels(image, images[number - 1]) for number, image in enumerate(images)]
    for name, copies in kinds.items():
        if kind not in name:
            continue
        pairs = matches([audited(str(n), f"copy {n}", copy.convert("RGB")) for n, copy in enumerate(copies)], originals)
        right = {pair.first for pair in pairs if pair.first == pair.second}
        also = {pair.first for pair in pairs if name == "two panels" and pair.second == (pair.first - 1) % len(paths)}
        wrong = [pair for pair in pairs if pair.first != pair.second and pair.first not in also]
        print(f"{name}: {len(right)} of {len(paths)} found, {len(wrong)} other pairs called the same", flush=True)
        told(wrong, originals, originals)


def numbers(folders: Sequence[Path], count: int) -> None:
    by_number = [{re.findall(r"\d+", path.stem)[-1]: path for path in files([folder])} for folder in folders]
    shared = sorted(by_number[0].keys() & by_number[1].keys())
    others = [evenly([path for number, path in paths.items() if number not in shared], count) for paths in by_number]
    first, second = (read([paths[n] for n in shared] + more) for paths, more in zip(by_number, others, strict=True))
    truth = {(place, place) for place in range(len(shared))}
    found = matches(first, second)
    hits = truth & {(pair.first, pair.second) for pair in found}
    print(f"{len(first)} and {len(second)} images, {len(truth)} share a number, {len(hits)} of them found")
    for place, other in sorted(truth - hits):
        print(f"  missed: {first[place].stored_sha256} {second[other].stored_sha256}")
    wrong = [pair for pair in found if (pair.first, pair.second) not in truth]
    print(f"{len(wrong)} pairs of other numbers called the same")
    told(wrong, first, second)


def cost(folders: Sequence[Path], count: int) -> None:
    """Where there are too few images, several crops of one stand for several."""
    paths = files(folders)
    sets, reading = [], 0.0
    for half in (paths[::2], paths[1::2]):
        images, rng = [], np.random.default_rng(len(sets))
        for number in range(count):
            path, stored = half[number * len(half) // count], io.BytesIO()
            cropped(0.04)(Image.open(path).convert("RGB"), rng).save(stored, "JPEG", quality=90)
            started = time.process_time()
            images.append(audited(str(number), str(path), Image.open(stored).convert("RGB")))
            reading += time.process_time() - started
        sets.append(images)
    squares = [details([image.thumbnail for image in images]) for images in sets]
    started = time.process_time()
    alike = sum(1 for _ in partners(*squares))
    correlated = time.process_time()
    FeatureSearch([image.features for image in sets[1]])
    indexed = time.process_time()
    found = matches(*sets)
    total = time.process_time() - indexed
    stages = {
        "reading": (reading, 2 * count),
        "correlating whole images": (correlated - started, count**2),
        "making the index of features": (indexed - correlated, count),
        "searching features, aligning": (total - (indexed - started), count),
    }
    for stage, (seconds, parts) in stages.items():
        print(f"{stage}: {seconds:.1f} s, {1000 * seconds / parts:.3g} ms for each of {parts}")
    print(f"{count} against {count}: {reading + total:.0f} s; {alike} whole images alike, {len(found)} pairs called the same")


COMMANDS: dict[str, Callable[..., None]] = {"alarms": alarms, "planted": planted, "numbers": numbers, "cost": cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        words = commands.add_parser(name)
        words.add_argument("folders", nargs="+", type=Path)
        words.add_argument("--images", type=int, default=100, dest="count")
        if command is planted:
            words.add_argument("--kind", default="", help="only the kinds with this in their names")
    arguments = vars(parser.parse_args())
    keep_freed_memory()
    COMMANDS[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    main()
