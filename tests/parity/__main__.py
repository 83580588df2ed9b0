"""Check our models against a folder of official numbers: ``python -m tests.parity FOLDER``.

The folder is laid out like shared/parity, with a model of any sizes; sizes come from its model.json and its tensors. Prints the
worst difference of every quantity; the exit code is 0 where all are below 1e-9, else 1.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.parity.comparison import EXACT, table


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="model.json, pretrain_*.safetensors, perhaps vqa_*.safetensors")
    folder = parser.parse_args(argv).folder
    if not (folder / "model.json").is_file():
        print(f"{folder} is not a folder of official numbers: it has no model.json.", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    try:
        rows = table(folder)
    except (KeyError, ValueError, RuntimeError, OSError) as e:
        print(f"{folder} cannot be computed with this code: {type(e).__name__}: {e}", file=sys.stderr)
        return 1
    print(f"{'what':<26} {'tensors':>7}  {'worst difference':>16}  where")
    for row in rows:
        print(f"{row.what:<26} {row.tensors:>7}  {row.worst:>16.1e}  {row.where}")
    worst = max(row.worst for row in rows)
    print(f"worst: {worst:.1e}, {'below' if worst < EXACT else 'NOT below'} {EXACT:.0e}")
    return int(not worst < EXACT)


if __name__ == "__main__":
    sys.exit(main())
