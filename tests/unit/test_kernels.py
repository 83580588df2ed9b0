"""The choice of AdamW: exact about apex, and free to change between checkpoints."""

import sys
import types
from pathlib import Path

import pytest
import torch

from m2i2.training.kernels import Choice, apex_problem, build, choose

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_without_cuda_pytorchs_fused_kernel_serves_and_says_why() -> None:
    assert str(choose(CPU)) == "AdamW: fused (PyTorch's; apex needs CUDA)"
    assert choose(torch.device("meta")).kernel == "plain"


def test_the_registrys_apex_is_told_from_nvidias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise ImportError('cannot import name UnencryptedCookieSessionFactoryConfig')")
    (tmp_path / "apex-0.9.10.dist-info").mkdir()
    (tmp_path / "apex-0.9.10.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: apex\nVersion: 0.9.10.dev0\n")
    assert apex_problem(CUDA) == "apex is not installed"
    monkeypatch.syspath_prepend(tmp_path)
    assert "not NVIDIA's or is broken (ImportError" in apex_problem(CUDA)


def test_a_python_only_build_is_no_apex(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, member in (("apex", ""), ("apex.optimizers", "FusedAdam"), ("apex.normalization", "FusedLayerNorm")):
        module = types.ModuleType(name)
        if member:
            setattr(module, member, object)
        monkeypatch.setitem(sys.modules, name, module)
    assert apex_problem(CUDA).startswith("apex was built without its extension amp_C (ModuleNotFoundError")
    for extension in ("amp_C", "fused_layer_norm_cuda"):
        monkeypatch.setitem(sys.modules, extension, types.ModuleType(extension))
    assert choose(CUDA).kernel == "apex"


def test_states_move_between_fused_and_plain() -> None:
    def steps(kinds: list[str]) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 7))
        state = None
        for number, kind in enumerate(kinds):
            optimizer = build([{"params": [weight], "weight_decay": 0.1}], Choice(kind, ""), lr=0.01, betas=(0.9, 0.99), eps=1e-8)  # type: ignore[arg-type]
            if state is not None:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            weight.grad = torch.full((7,), 0.3 + number)
            optimizer.step()
            state = optimizer.state_dict()["state"]
        return weight.detach()

    torch.testing.assert_close(steps(["fused", "plain", "fused"]), steps(["plain"] * 3), atol=1e-7, rtol=0)
