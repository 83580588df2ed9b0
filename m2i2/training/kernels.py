"""Which implementation of AdamW runs: apex's fused kernel, PyTorch's fused one, or the plain one; and why.

All three compute the same update and keep the same moments, so that checkpoints move between them.
"""

import importlib
import importlib.metadata
from dataclasses import dataclass
from typing import Any, Literal

import torch

Kernel = Literal["apex", "fused", "plain"]


@dataclass(frozen=True)
class Choice:
    """The implementation in use, and the reason."""

    kernel: Kernel
    reason: str

    def __str__(self) -> str:
        return f"AdamW: {self.kernel} ({self.reason})"


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


def choose(device: torch.device) -> Choice:
    """Apex where it is whole, else PyTorch's fused kernel where the device has one, else the plain implementation."""
    problem = apex_problem(device)
    if not problem:
        return Choice("apex", "its CUDA extensions are there")
    if device.type in ("cuda", "cpu"):
        return Choice("fused", f"PyTorch's; {problem}")
    return Choice("plain", f"no fused kernel for {device.type}")


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
