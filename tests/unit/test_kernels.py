"""The choice of AdamW: exact about apex, and free to change between checkpoints."""

import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from m2i2.backends import cpu
from m2i2.backends.choice import Backend, choose, fuse_and_compile, install
from m2i2.backends.cuda import apex_problem, fuse_norms
from m2i2.config import TrainingConfig
from m2i2.errors import M2I2Error
from m2i2.models import ops
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.text import ImageRows
from m2i2.presets import preset
from m2i2.training.optimizer import build

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_without_cuda_pytorchs_fused_kernel_serves_and_says_why() -> None:
    assert str(choose(CPU)) == "Kernels: fused (PyTorch's; apex needs CUDA)"
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
            optimizer = build(
                [{"params": [weight], "weight_decay": 0.1}], Backend(kind, "", CPU), lr=0.01, betas=(0.9, 0.99), eps=1e-8
            )  # type: ignore[arg-type]
            if state is not None:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            weight.grad = torch.full((7,), 0.3 + number)
            optimizer.step()
            state = optimizer.state_dict()["state"]
        return weight.detach()

    torch.testing.assert_close(steps(["fused", "plain", "fused"]), steps(["plain"] * 3), atol=1e-7, rtol=0)


def test_plain_kernels_are_pytorchs_own() -> None:
    install(CPU)
    assert (ops._kernels.attention, ops._kernels.linear) == (cpu.attention, cpu.linear)
    install(CPU, TrainingConfig(kernels="plain"))
    assert (ops._kernels.attention, ops._kernels.linear) == (ops.plain_attention, ops.plain_linear)


def test_layers_are_compiled_once_for_each_shape() -> None:
    """By a compiler that keeps the graphs as they are; all layers of a kind share theirs."""
    model = small()
    fuse_and_compile([model], choose(CPU), TrainingConfig(compile=True))
    encoder, patches, side = model.visual_encoder, model.vision.patches, model.vision.image_size

    def step(rows: int) -> int:
        encoder(torch.randn(rows, 3, side, side), torch.rand(rows, patches), 0.5).states.sum().backward()
        return int(counters["stats"]["unique_graphs"])

    torch._dynamo.reset()
    with torch.compiler.set_stance("default", force_backend="eager"):
        before = int(counters["stats"]["unique_graphs"])
        first = step(2)
        second = step(3)
        assert 1 <= first - before < len(encoder.blocks) * 2 and second - first <= first - before
        assert [step(rows) for rows in (2, 3, 2, 3)] == [second] * 4
    torch._dynamo.reset()


def test_what_is_asked_for_is_used_or_refused_with_the_reason() -> None:
    assert choose(CPU, "plain").kernel == "plain"
    assert str(choose(CPU, "fused")) == "Kernels: fused (requested by training.kernels)"
    with pytest.raises(M2I2Error, match=r"training\.kernels=apex is not available: apex needs CUDA"):
        choose(CPU, "apex")
    with pytest.raises(M2I2Error, match="there is no fused kernel for meta"):
        choose(torch.device("meta"), "fused")


def small() -> PretrainingModel:
    torch.manual_seed(0)
    config = preset("tiny")[0]
    return PretrainingModel(config.vision, config.text, config.objectives)


def test_fused_norms_take_over_parameters_and_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of apex's class: what apex computes only a GPU can tell."""
    apex, normalization = types.ModuleType("apex"), types.ModuleType("apex.normalization")
    normalization.FusedLayerNorm = type("FusedLayerNorm", (torch.nn.LayerNorm,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.normalization", normalization)
    model = small()
    before = dict(model.named_parameters())
    norms = sum(type(m) is torch.nn.LayerNorm for m in model.modules())
    fuse_norms(model)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    fused = [m for m in model.modules() if type(m).__name__ == "FusedLayerNorm"]
    assert len(fused) == norms > 20 and {m.eps for m in fused} == {1e-6, 1e-12}  # type: ignore[union-attr]
    assert not any(type(m) is torch.nn.LayerNorm for m in model.modules())


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_compute_the_same_under_the_same_names() -> None:
    plain, compiled = small(), small()
    training = TrainingConfig(compile=True)
    backend = install(CPU, training)
    assert backend.kernel == "fused"
    fuse_and_compile([compiled], backend, training)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    side = plain.vision.image_size
    image, noise = torch.randn(2, 3, side, side), torch.rand(2, plain.vision.patches)
    gradients = []
    for model in (plain, compiled):
        seen = model.visual_encoder(image, noise, 0.5)
        seen.states.square().mean().backward()
        gradients.append(model.visual_encoder.blocks[0].mlp.fc1.weight.grad)
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-6


def test_layers_that_are_computed_again_keep_less_and_give_the_same_gradients() -> None:
    backend, found = install(CPU, TrainingConfig()), dict[bool, tuple[int, list[torch.Tensor]]]()
    ids = torch.randint(5, 900, (2, 12))
    side = preset("tiny")[0].vision.image_size
    image, noise = torch.randn(2, 3, side, side), torch.rand(2, preset("tiny")[0].vision.patches)
    for again in (False, True):
        torch.manual_seed(0)
        config = preset("tiny")[0]
        model = PretrainingModel(config.vision, replace(config.text, dropout=0.1), config.objectives)
        fuse_and_compile([model], backend, TrainingConfig(checkpoint_activations=again))
        kept = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        torch.manual_seed(1)  # of the dropout, which must be drawn again as it was
        bert = model.text_encoder.bert
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = model.visual_encoder(image, noise, 0.5).states
            text = bert.encode(ids, torch.ones_like(ids))
            loss = bert.fuse(text, torch.ones_like(ids), [ImageRows(bert.image_keys_values(states), 1)]).square().mean()
        loss.backward()
        found[again] = (
            kept,
            [p.grad for p in (model.visual_encoder.blocks[0].mlp.fc1.weight, bert.embeddings.word_embeddings.weight)],
        )
    assert found[True][0] < 0.4 * found[False][0]
    assert all(torch.equal(one, other) for one, other in zip(found[False][1], found[True][1], strict=True))
