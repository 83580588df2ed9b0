"""Which kernels run: apex's, PyTorch's fused ones, or plain ones; and why. For AdamW, and with apex for LayerNorm.

All of them compute the same and keep the same state under the same names, so that checkpoints move between them.
"""

import importlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from m2i2.config import TrainingConfig
from m2i2.errors import M2I2Error
from m2i2.models.text import Intermediate, ResidualOutput
from m2i2.models.vision import Block

Kernel = Literal["apex", "fused", "plain"]


@dataclass(frozen=True)
class Choice:
    """The kernels in use, and the reason."""

    kernel: Kernel
    reason: str

    def __str__(self) -> str:
        return f"Kernels: {self.kernel} ({self.reason})"


def apex_problem(device: torch.device) -> str:
    """Why NVIDIA's apex cannot serve; empty where it can.

    A Python-only build imports and fails later, and the registry's ``apex`` is another project: so the compiled
    extensions are imported too, and whatever they raise counts.
    """
    if device.type != "cuda":
        return "apex needs CUDA"
    try:
        from apex.normalization import FusedLayerNorm  # noqa: F401
        from apex.optimizers import FusedAdam  # noqa: F401
    except Exception as e:  # a package of the same name, or one built for another torch, may raise anything
        try:
            importlib.metadata.version("apex")
        except importlib.metadata.PackageNotFoundError:
            return "apex is not installed"
        return (
            f"the installed package apex is not NVIDIA's or is broken ({type(e).__name__}: {e}); "
            f"uninstall it and build github.com/NVIDIA/apex with its CUDA extensions"
        )
    for extension in ("amp_C", "fused_layer_norm_cuda"):
        try:
            importlib.import_module(extension)
        except Exception as e:
            return f"apex was built without its extension {extension} ({type(e).__name__}: {e})"
    return ""


def choose(device: torch.device, wanted: str = "auto") -> Choice:
    """Apex where it is whole, else PyTorch's fused kernel where the device has one, else the plain implementation.

    M2I2Error where the ``wanted`` one (``training.kernels``) cannot be had.
    """
    problem = apex_problem(device)
    fused = device.type in ("cuda", "cpu")
    if wanted == "plain":
        return Choice("plain", "training.kernels asks for them")
    if wanted == "apex" and problem:
        raise M2I2Error(f"training.kernels=apex cannot be had: {problem}. training.kernels=auto takes what is there.")
    if wanted == "fused" and not fused:
        raise M2I2Error(f"training.kernels=fused cannot be had: there is no fused kernel for {device.type}.")
    if not problem and wanted != "fused":
        return Choice("apex", "its CUDA extensions are there")
    if fused:
        return Choice("fused", "training.kernels asks for PyTorch's" if wanted == "fused" else f"PyTorch's; {problem}")
    return Choice("plain", f"no fused kernel for {device.type}")


def fuse_norms(model: nn.Module) -> None:
    """Give the LayerNorms of ``model`` apex's kernel, in place; parameters and their names stay."""
    from apex.normalization import FusedLayerNorm

    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if type(norm) is nn.LayerNorm:
                fused = FusedLayerNorm(norm.normalized_shape, eps=norm.eps)
                fused.weight, fused.bias = norm.weight, norm.bias
                setattr(module, name, fused.train(norm.training))


def compile_layers(model: nn.Module) -> None:
    """Let torch.compile see to the layers of ``model``, in place; names of parameters stay.

    Of the text layers the parts around attention: whatever reads an image calls attention from outside.
    """
    for module in model.modules():
        if isinstance(module, Block | Intermediate | ResidualOutput):
            module.compile(dynamic=True)


def install(modules: Iterable[nn.Module], training: TrainingConfig, device: torch.device) -> Choice:
    """Give ``modules`` what the settings ask for and ``device`` has; returns the kernels, of AdamW too."""
    choice = choose(device, training.kernels)
    for module in modules:
        if choice.kernel == "apex":
            fuse_norms(module)
        if training.compile:
            compile_layers(module)
    return choice


def build(groups: list[dict[str, Any]], choice: Choice, **options: Any) -> torch.optim.Optimizer:
    """AdamW over ``groups`` with ``lr``, ``betas`` and ``eps``."""
    if choice.kernel == "apex":
        from apex.optimizers import FusedAdam

        optimizer: torch.optim.Optimizer = FusedAdam(groups, adam_w_mode=True, **options)
        return optimizer
    return torch.optim.AdamW(groups, fused=choice.kernel == "fused", **options)


def steps_done(state: dict[str, Any], group: dict[str, Any]) -> int:
    """Steps that a parameter's state has seen; apex counts them in the group."""
    return int(state["step"] if "step" in state else group.get("step", 0))
