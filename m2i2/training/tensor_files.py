"""Writing safetensors files from the host's memory, hashed on the way.

The library's own writer copies every tensor into a bytes object and holds Python's lock for as long as the file takes. This one
writes slices of the tensors' memory and gives the lock up for each, so that a thread can write while another one trains. The files
are the same to the byte.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from m2i2.files import open_to_write

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""Types by their names in a file's header, in the order of the format: files hold the last ones first."""
_ORDER = {dtype: number for number, dtype in enumerate(_NAMES)}
_SLICE = 8 << 20
"""Bytes that are written and hashed at a time, without Python's lock."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file and return the sha256 of what was written; tensors that share memory are written once each.

    ``tensors`` may be on any device; those on the host are not copied, and must not change meanwhile. OSError where the disk
    refuses.
    """
    names = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype], name))
    header, offset = dict[str, object](), 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open_to_write(path) as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            digest.update(part)
        for name in names:
            memory = _bytes(tensors[name])
            for start in range(0, len(memory), _SLICE):
                piece = memory[start : start + _SLICE]
                file.write(piece)
                digest.update(piece)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in the host's memory, without a copy where they are there already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
