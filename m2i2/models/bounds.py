"""What files of weights ask of their readers, checked before PyTorch and safetensors see them: names and objects are counted."""

import io
import pickletools
import zipfile
from pathlib import Path
from typing import IO

from m2i2.config import TextConfig, VisionConfig
from m2i2.errors import M2I2Error
from m2i2.files import check_file, read_object
from m2i2.options import from_dict

MOST_TENSORS = 100_000
"""Names in a file; the largest published models have some thousand. Each becomes an object of a kilobyte."""
MOST_HEADER = 16 << 20
"""Bytes of the header of safetensors."""
MOST_PICKLE = 64 << 20
"""Bytes of the pickle in a ``.pth``, beside which its numbers lie."""
MOST_OPCODES = 1_000_000
"""Steps of that pickle; a checkpoint with its optimizer's state has some ten thousand. One makes up to a hundred bytes."""
_OLD_PICKLES = 5
"""At the head of a file from before PyTorch 1.6: magic number, version, system, the state, the keys of its storages."""


def check_safetensors(path: Path) -> None:
    """M2I2Error where the header is larger or names more tensors than any model's; OSError for no regular file."""
    check_file(path)
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > MOST_HEADER:
            raise M2I2Error(f"{path} was refused: its header has {length} bytes, more than the bound of {MOST_HEADER}.")
        if f.read(length).count(b"{") > MOST_TENSORS:
            raise M2I2Error(f"{path} was refused: it names more than {MOST_TENSORS} tensors.")


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """ValueError for a ``.pth`` of ``size`` bytes that unpacks to more than itself."""
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is compressed, which torch.save never does")
    if len(members) > MOST_TENSORS or sum(member.file_size for member in members) > size:
        raise ValueError("its members overlap, or are more than any model's")
    for member in members:
        if member.filename.endswith(".pkl"):
            if member.file_size > MOST_PICKLE:
                raise ValueError(f"its pickle has {member.file_size} bytes, more than {MOST_PICKLE}")
            _count(io.BytesIO(archive.read(member)), MOST_OPCODES)


def check_old(file: IO[bytes]) -> None:
    """ValueError for a ``.pth`` of the old kind whose pickles are longer than any model's."""
    left = MOST_OPCODES
    for _ in range(_OLD_PICKLES):
        left -= _count(file, left)
    file.seek(0)


def _count(file: IO[bytes], most: int) -> int:
    count = 0
    for count, _ in enumerate(pickletools.genops(file), 1):
        if count > most:
            raise ValueError(f"its pickle has more than {MOST_OPCODES} steps")
    return count


def indexed_parts(index: Path) -> list[Path]:
    """The files that an index of weights names; M2I2Error for one outside its folder, OSError for no regular file."""
    names = read_object(index, "index of the weights").get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise M2I2Error(f"{index} names no weights; download it again.")
    if len(names) > MOST_TENSORS:
        raise M2I2Error(f"{index} was refused: it names more than {MOST_TENSORS} tensors.")
    parts = sorted(set(names.values()))
    if outside := [part for part in parts if Path(part).name != part or part in ("", ".", "..") or "\0" in part]:
        raise M2I2Error(f"{index} was refused: it names {outside[0]!r:.80}, a file outside its folder.")
    return [index.parent / part for part in parts]


def require_described(vision: VisionConfig, text: TextConfig, held: int, what: str) -> None:
    """M2I2Error where the settings describe a model of more numbers than ``held``, the bytes of its weights.

    A model is made before it takes its weights, so that a line of settings could ask for any amount of memory.
    """
    image = vision.depth * 12 * vision.width**2 + (vision.patches + 3 * vision.patch_size**2) * vision.width
    layers = text.depth * (4 * text.width**2 + 2 * text.width * text.intermediate)
    least = image + layers + (text.vocabulary_size + text.positions) * text.width
    if least > held:
        raise M2I2Error(
            f"{what} was refused: its settings describe a model of at least {least:.3g} numbers, its weights have {held} bytes. "
            f"They do not belong together; download or copy it again."
        )


def check_folder(folder: Path) -> None:
    """M2I2Error where transformers would leave a model's folder, or ask for more than its files hold."""
    if (folder / "adapter_config.json").exists():
        raise M2I2Error(f"{folder} was refused: it holds an adapter of another model, which would be loaded from elsewhere.")
    try:
        index = folder / "model.safetensors.index.json"
        files = indexed_parts(index) if index.exists() else [folder / "model.safetensors"]
        there = [path for path in files if path.exists()]
        for path in there:
            check_safetensors(path)
        if there and (folder / "config.json").exists():
            values = read_object(folder / "config.json", "model's configuration")
            sections = from_dict(VisionConfig, values.get("vision") or {}), from_dict(TextConfig, values.get("text") or {})
            require_described(*sections, sum(path.stat().st_size for path in there), str(folder))
    except OSError as e:
        raise M2I2Error(f"Cannot read the weights in {folder}: {e.strerror}. Download them again.") from e
