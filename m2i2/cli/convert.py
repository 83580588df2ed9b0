"""``tools/convert.py``: a model from one format into another, verified."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m2i2.exits import guarded
from m2i2.terminal import say

DESCRIPTION = """Convert a model between the official .pth, a checkpoint of ours (what a DeepSpeed run leaves in its folder) and a
Hugging Face folder, in any direction. The format of the input is told by looking. What was written is read back and compared
with what was meant, tensor by tensor, bit by bit; teacher, queue and settings come along, optimizer states do not."""

EXAMPLES = """examples:
  python tools/convert.py runs/rad --to hugging-face --output hub/m2i2-rad --results runs/rad/evaluation-test-rank/results.json
  python tools/convert.py m2i2_pretrain.pth --to checkpoint --output runs/official --tokenizer bert-base-uncased
  python tools/convert.py runs/rocov2 --to official --output rocov2.pth
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="convert.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("input", type=Path, metavar="MODEL", help="an official .pth, a run or a checkpoint of it, or a Hugging Face folder")
    add("--to", required=True, choices=["official", "checkpoint", "hugging-face"], help="the format to write")
    add("--output", type=Path, required=True, metavar="PATH", help="a new file (official) or a new folder")
    add("--tokenizer", default="", metavar="NAME", help="for an official file: its tokenizer, a folder or a name on the hub")
    add(
        "--heads",
        type=_heads,
        metavar="N[,M]",
        help="for an official file: attention heads of image and text (default: as stored, else one for every 64 of the width)",
    )
    add("--results", type=Path, metavar="JSON", help="a results.json to show in the model card (hugging-face)")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _convert(arguments))


def _heads(word: str) -> tuple[int, int]:
    """``N``, or ``N,M`` where image and text differ."""
    numbers = [int(number) for number in word.split(",")]
    if not 1 <= len(numbers) <= 2 or min(numbers) < 1:
        raise argparse.ArgumentTypeError("write N, or N,M where image and text have different numbers of heads")
    return numbers[0], numbers[-1]


def _convert(arguments: argparse.Namespace) -> int:
    from m2i2.files import read_object
    from m2i2.hub.conversion import beyond_official, format_of, read, write

    source, target = arguments.input, arguments.output
    results = read_object(arguments.results, "results") if arguments.results else None
    weights = read(source, arguments.tokenizer, arguments.heads)
    write(weights, target, arguments.to, results)
    count = len(weights.tensors())
    say(f"{source} ({format_of(source)}) -> {target} ({arguments.to}): {count} tensors read back, every bit the same.")
    if arguments.to == "official":
        for line in beyond_official(weights.settings):
            say(line)
    return 0
