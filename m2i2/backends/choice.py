"""Which kernels this process computes with, and why: chosen once, at start.

`install` gives the networks their attention and linear layers, `fuse_and_compile` gives a model fused norms and compiled
layers, and `training.optimizer.build` takes AdamW from the same `Backend`.

All of them compute the same and keep the same state under the same names, so that checkpoints move between them.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from m2i2.backends import cpu, heap
from m2i2.backends.cuda import apex_problem, fuse_norms
from m2i2.config import TrainingConfig
from m2i2.errors import M2I2Error
from m2i2.models import ops
from m2i2.models.text import Intermediate, ResidualOutput, TextModel
from m2i2.models.vision import Block, VisionTransformer
from m2i2.ownership import PRIVATE, require_own_folder, user_cache

Kernel = Literal["apex", "fused", "plain"]


@dataclass(frozen=True)
class Backend:
    """The kernels in use, of AdamW and (with apex) of LayerNorm, and the reason."""

    kernel: Kernel
    reason: str
    device: torch.device

    def __str__(self) -> str:
        return f"Kernels: {self.kernel} ({self.reason})"

    def after_step(self, step: int) -> None:
        """Once per optimizer step, after it: on a CPU, look after the heap."""
        if self.device.type == "cpu":
            heap.keep_freed_memory()  # now that weights, moments and teacher have their places
            if step % heap.HOLES_EVERY == 0:
                heap.give_back_holes()


def choose(device: torch.device, wanted: str = "auto") -> Backend:
    """Apex where it is complete, else PyTorch's fused kernel where the device has one, else the plain implementation.

    M2I2Error where the ``wanted`` one (``training.kernels``) is not available.
    """
    problem = apex_problem(device)
    fused = device.type in ("cuda", "cpu")
    if wanted == "plain":
        return Backend("plain", "requested by training.kernels", device)
    if wanted == "apex" and problem:
        raise M2I2Error(f"training.kernels=apex is not available: {problem}. training.kernels=auto picks the best available.")
    if wanted == "fused" and not fused:
        raise M2I2Error(f"training.kernels=fused is not available: there is no fused kernel for {device.type}.")
    if not problem and wanted != "fused":
        return Backend("apex", "CUDA extensions found", device)
    if fused:
        return Backend("fused", "requested by training.kernels" if wanted == "fused" else f"PyTorch's; {problem}", device)
    return Backend("plain", f"no fused kernel for {device.type}", device)


def install(device: torch.device, training: TrainingConfig | None = None) -> Backend:
    """Let the networks of this process compute with the best kernels for ``device``.

    ``training``: what the settings ask for; without them, as for answering questions, the device decides alone.
    """
    backend = choose(device, training.kernels if training else "auto")
    if device.type == "cpu" and backend.kernel != "plain":
        ops.use(cpu.attention, cpu.linear)
    elif device.type == "cpu":
        ops.use()
    else:
        ops.use()
        torch.set_float32_matmul_precision("high" if training and training.tf32 else "highest")
    return backend


def fuse_and_compile(modules: Iterable[nn.Module], backend: Backend, training: TrainingConfig) -> None:
    """Give ``modules`` the layers that the backend and the settings ask for, in place; names of parameters stay."""
    for module in modules:
        if backend.kernel == "apex":
            fuse_norms(module)
        for part in module.modules():
            if isinstance(part, VisionTransformer | TextModel):
                part.checkpoint_activations = training.checkpoint_activations
        if training.compile:
            compile_layers(module)


def compile_layers(model: nn.Module) -> None:
    """Compile the layers of ``model`` in place; names of parameters stay.

    Of the text layers the parts around attention: whatever reads an image calls attention from outside.
    """
    _keep_compiled_code_private()
    for module in model.modules():
        if isinstance(module, Block | Intermediate | ResidualOutput):
            module.compile(dynamic=True)


def _keep_compiled_code_private() -> None:
    """PyTorch runs whatever lies in its folder of compiled code, by default one in /tmp that another user can make first.

    M2I2Error where the user's own cache cannot take its place. A folder that the environment names is taken as it is.
    """
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return
    folder = user_cache("compiled")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
        require_own_folder(folder)
    except OSError as e:
        raise M2I2Error(
            f"training.compile cannot keep its code in {folder}: {e.strerror}. Name a folder of your own in "
            f"TORCHINDUCTOR_CACHE_DIR."
        ) from e
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
