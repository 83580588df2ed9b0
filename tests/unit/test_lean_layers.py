"""What training in half precision on a CPU computes with less memory is what PyTorch computes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2i2.backends import cpu as module
from m2i2.backends.choice import install
from m2i2.models.ops import Linear, attention


@pytest.fixture(autouse=True)
def _installed() -> None:
    install(torch.device("cpu"))


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """[B, L, H, d] as projections give it, seen as [B, H, L, d]."""
    batch, heads, length, width = shape
    return torch.randn(batch, length, heads, width).to(dtype).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize("in_cache", [1, 6000, 1 << 30])
@pytest.mark.parametrize("keys", [7, 33])
def test_attention_in_pieces_is_attention(in_cache: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head at a time, two or three, and all; self-attention or not."""
    monkeypatch.setattr(module, "IN_CACHE", in_cache)
    torch.manual_seed(0)
    query, key, value = drawn(2, 5, 33, 8), drawn(2, 5, keys, 8), drawn(2, 5, keys, 8)
    found = attention(query, key, value)
    exact = F.scaled_dot_product_attention(*(x.double() for x in (query, key, value)))
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0)
    towards = torch.randn_like(found)
    mine = torch.autograd.grad(found, (query, key, value), towards)
    theirs = torch.autograd.grad(exact, (query, key, value), towards.double())
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=0.03, rtol=0.03)
    with torch.inference_mode():
        assert torch.equal(attention(query.detach(), key.detach(), value.detach()), found)


def test_pieces_change_no_bit() -> None:
    torch.manual_seed(0)
    query, key, value = drawn(2, 4, 40, 16), drawn(2, 4, 40, 16), drawn(2, 4, 40, 16)
    whole = module._by_products(query, key, value, None, 0.0)
    pieces = attention(query, key, value)
    assert torch.equal(whole, pieces)
    towards = torch.randn_like(whole)
    for one, other in zip(
        torch.autograd.grad(whole, (query, key, value), towards),
        torch.autograd.grad(pieces, (query, key, value), towards),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("gelu", [False, True])
def test_a_layer_that_is_made_again_gives_autocasts_results_and_gradients(gelu: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(24, 10)
    plain = nn.Linear(24, 10)
    plain.load_state_dict(layer.state_dict())
    x, other = (torch.randn(3, 5, 24, requires_grad=True) for _ in range(2))
    other.data.copy_(x.data)
    towards = torch.randn(3, 5, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x, gelu)
        half = other.to(torch.bfloat16)
        expected = plain(F.gelu(half) if gelu else half)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
    found.backward(towards.bfloat16())
    expected.backward(towards.bfloat16())
    for mine, theirs in ((layer.weight, plain.weight), (layer.bias, plain.bias), (x, other)):
        assert mine.grad is not None and theirs.grad is not None and mine.grad.dtype == torch.float32
        torch.testing.assert_close(mine.grad, theirs.grad, atol=0.01, rtol=0.01)


def test_nothing_but_input_and_weight_is_kept() -> None:
    layer, kept = Linear(64, 256), list[tuple[torch.Size, torch.dtype]]()
    second = Linear(256, 64)

    def keep(x: Tensor) -> Tensor:
        kept.append((x.shape, x.dtype))
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", dtype=torch.bfloat16):
        second(layer(torch.randn(8, 64, requires_grad=True)), gelu=True)
    half = [shape for shape, dtype in kept if dtype == torch.bfloat16]
    assert half == [torch.Size([8, 64]), torch.Size([8, 256])], kept  # no copy of a weight, no result of GELU
