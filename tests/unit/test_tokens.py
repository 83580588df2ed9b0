"""Losses over the vocabulary from half-precision logits: float32's to rounding, and nothing of float32 is kept of them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.backends.attention import KERNELS, fastest_order
from m2i2.objectives import tokens
from m2i2.objectives.answers import answer_loss
from m2i2.objectives.mlm import mlm_loss

ROWS, WORDS = 7, 50


def drawn() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return (3 * torch.randn(ROWS, WORDS)).bfloat16().requires_grad_(), (3 * torch.randn(ROWS, WORDS)).bfloat16()


@pytest.mark.parametrize("numbers", [1, 3 * WORDS, 1 << 20])
@pytest.mark.parametrize("share", [None, 0.0, 0.4])
def test_losses_and_gradients_in_pieces(numbers: int, share: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row at a time, three, and all."""
    monkeypatch.setitem(tokens._NUMBERS, "cpu", numbers)
    logits, teacher = drawn()
    labels = torch.randint(WORDS, (ROWS,))
    asked = torch.tensor([1.0, 0, 2, 1, 1, 1, 0.5])
    found = tokens.token_losses(logits, labels, teacher, None if share is None else torch.tensor(share))
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, labels, reduction="none")
    if share is not None:
        expected = (1 - share) * expected + share * F.cross_entropy(exact, teacher.double().softmax(-1), reduction="none")
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    (found * asked).sum().backward()
    (expected * asked).sum().backward()
    assert logits.grad is not None and exact.grad is not None and logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logits.grad.double(), exact.grad, atol=1e-3, rtol=0.01)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_losses_of_both_stages_keep_no_float32_logits(share: float) -> None:
    logits, teacher = drawn()
    labels = torch.tensor([3, -100, 7, -100, 0, 1, 2])
    ids, mask = torch.randint(WORDS, (1, ROWS + 1)), torch.ones(1, ROWS + 1)
    kept: list[tuple[torch.Size, torch.dtype]] = []

    def keep(x: Tensor) -> Tensor:
        kept.append((x.shape, x.dtype))
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        words = mlm_loss(logits, labels, teacher, torch.tensor(5.0), share)
        answers = answer_loss(logits.unsqueeze(0), ids, mask, teacher.unsqueeze(0), share, 0.5)
    assert kept and not [one for one in kept if one[0].numel() == ROWS * WORDS and one[1] == torch.float32]
    exact = logits.detach().float(), teacher.float()
    torch.testing.assert_close(words, mlm_loss(exact[0], labels, exact[1], torch.tensor(5.0), share), atol=1e-5, rtol=0)
    expected = answer_loss(exact[0].unsqueeze(0), ids, mask, exact[1].unsqueeze(0), share, 0.5)
    torch.testing.assert_close(answers, expected, atol=1e-4, rtol=0)


def test_the_order_of_attentions_kernels_takes_least_time() -> None:
    """Flash attention takes no mask: the second place decides for the kinds with one."""
    times: dict[str, list[float | None]] = {
        **{"flash": [1.0, None, 2.0], "efficient": [3.0, 4.0, 3.0]},
        **{"cudnn": [2.0, 9.0, 1.5], "math": [9.0, 3.0, 9.0]},
    }
    assert fastest_order(times)[:2] == ("flash", "math")
    times["cudnn"][1] = 0.5
    assert fastest_order(times)[0] == "cudnn" or fastest_order(times)[:2] == ("flash", "cudnn")
    nothing = {name: [None, None] for name in KERNELS}
    assert fastest_order({**nothing, "math": [1.0, 1.0]})[0] == "math"
