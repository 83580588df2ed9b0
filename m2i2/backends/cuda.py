"""What a GPU has beyond PyTorch: NVIDIA's apex, where it was built whole. It is optional."""

import importlib
import importlib.metadata

import torch
from torch import nn


def apex_problem(device: torch.device) -> str:
    """Why NVIDIA's apex cannot be used; empty where it can.

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


def fuse_norms(model: nn.Module) -> None:
    """Give the LayerNorms of ``model`` apex's kernel, in place; parameters and their names stay."""
    from apex.normalization import FusedLayerNorm

    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if type(norm) is nn.LayerNorm:
                fused = FusedLayerNorm(norm.normalized_shape, eps=norm.eps)
                fused.weight, fused.bias = norm.weight, norm.bias
                setattr(module, name, fused.train(norm.training))
