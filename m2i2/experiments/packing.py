"""A recipe packed for a machine without a network that is lent for half an hour: code, weights and shards, in pieces.

There one script joins the pieces, runs the cells, several at a time, and packs the records, which are all that comes back.
"""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from m2i2.errors import M2I2Error
from m2i2.experiments.recipe import prepared
from m2i2.experiments.running import ROOT
from m2i2.files import require_new_folder, sha256_of, write_text
from m2i2.models.weights import tensors_of

CODE = ("m2i2", "launchers", "tools", "ds_configs")
_SUFFIXES = {".py", ".json", ".sh", ".safetensors", ".txt", ".html", ".css", ".js"}
_SCRIPT = """#!/usr/bin/env bash
# Joins the pieces, checks them, runs the cells and packs their records: JOBS=4 OUT=FOLDER bash run.sh
# The packages that M2I2 needs must be importable by $PYTHON (python3). A second start goes on where the first was stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
job=${WORK:-$here/job}
export OUT=${OUT:-$here}
cd "$here"
sha256sum --check --quiet SHA256SUMS
mkdir -p "$job"
[ -e "$job/unpacked" ] || { cat piece-* | tar -x -C "$job" && touch "$job/unpacked"; }
cd "$job"
export PYTHONPATH="$job/code${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
code=0
"${PYTHON:-python3}" code/launchers/ablate.py recipe.json --data none --work work --results records \\
  --jobs "${JOBS:-4}" --threads "${THREADS:-1}" || code=$?
tar -cz --exclude='*.safetensors' -f "$OUT/records.tar.gz" records $(ls -d work/logs 2>/dev/null)
exit $code
"""


class _Pieces(io.RawIOBase):
    """A file that is written as pieces of at most ``size`` bytes, ``piece-000`` and on."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size, self._room = folder, size, 0
        self._file: io.BufferedWriter | None = None
        self.paths: list[Path] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        """All of ``data``, bytes."""
        view = memoryview(data)  # type: ignore[arg-type]
        written = 0
        while written < len(view):
            if not self._room:
                self._next()
            assert self._file is not None
            part = view[written : written + self._room]
            self._file.write(part)
            self._room -= len(part)
            written += len(part)
        return written

    def _next(self) -> None:
        self._end()
        self.paths.append(self._folder / f"piece-{len(self.paths):03}")
        self._file, self._room = self.paths[-1].open("xb"), self._size

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """End the last piece."""
        self._end()
        super().close()


def pack(recipe: Path, prepare: Sequence[str], work: Path, results: Path, output: Path, piece_mb: int) -> list[Path]:
    """Write a prepared recipe as pieces and ``run.sh``; returns the files. What has a record already is not run again there.

    ``prepare``: the recipe's commands, which have been run in ``work``. Weights of starts are packed in half precision (float16).
    M2I2Error where ``output`` is not empty or a piece would have no size.
    """
    if piece_mb < 1:
        raise M2I2Error(f"--piece-mb {piece_mb} must be at least 1.")
    require_new_folder(output, "name a new folder for the pieces.")
    output.mkdir(parents=True, exist_ok=True)
    pieces = _Pieces(output, piece_mb * 1_000_000)
    with tarfile.open(fileobj=io.BufferedWriter(pieces), mode="w|") as tar:
        for name in CODE:
            for path in sorted((ROOT / name).rglob("*")):
                if path.is_file() and path.suffix in _SUFFIXES:
                    tar.add(path, f"code/{path.relative_to(ROOT)}")
        tar.add(recipe, "recipe.json")
        for path in sorted(results.glob("*.json")):
            tar.add(path, f"records/{path.name}")
        for line in prepare:
            folder = prepared(line, Path("data"))[2]
            for path in sorted((work / folder).rglob("*")):
                if path.is_file():
                    _add(tar, path, f"work/{path.relative_to(work)}")
        stream = tar.fileobj
    assert stream is not None
    stream.close()
    pieces.close()
    write_text(output / "SHA256SUMS", "".join(f"{sha256_of(path)}  {path.name}\n" for path in pieces.paths))
    write_text(output / "run.sh", _SCRIPT)
    return sorted(output.iterdir())


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """A file; weights in half precision."""
    if path.name != "model.safetensors":
        tar.add(path, name)
        return
    tensors = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in tensors_of(path).items()}
    if any(not tensor.isfinite().all() for tensor in tensors.values() if tensor.dtype == torch.float16):
        tar.add(path, name)  # beyond float16's range
        return
    content = safetensors.torch.save({key: tensor.contiguous() for key, tensor in tensors.items()}, {"format": "pt"})
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
