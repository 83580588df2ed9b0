"""PyTorch's kernels of attention on a GPU: which one is tried first, by measurement at start.

PyTorch tries its kernels (flash, memory-efficient, cuDNN, plain products) in a fixed order and takes the first that can compute
what is asked. Which one is fastest depends on card, driver, lengths and masks; flash attention takes no mask. One order serves all
kinds of attention of a model: the one that takes least time for them together.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.distributed import on_first_rank

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
_REPEATS = 10
_MOST_ROWS = 32
"""Rows of a batch that are measured with: times grow in proportion above."""


class Kind(NamedTuple):
    """An attention of a model's step, and how often the step computes it."""

    rows: int
    heads: int
    queries: int
    keys: int
    width: int
    """Of a head."""
    masked: bool
    dropout: float
    times: int


def kinds_of(config: PretrainingConfig | FinetuningConfig, rows: int) -> list[Kind]:
    """The kinds of attention in a step of ``rows`` samples, texts as long as they may be."""
    vision, text, tokens = config.vision, config.text, config.data.max_tokens
    of_text, fused = (text.heads, text.width // text.heads), text.depth - text.fusion_layer
    seen, texts = vision.patches, 1
    if isinstance(config, PretrainingConfig):
        seen, texts = int(vision.patches * (1 - config.objectives.image_mask_ratio)), 3
    found = [
        Kind(rows, vision.heads, 1 + seen, 1 + seen, vision.width // vision.heads, False, 0.0, vision.depth),
        Kind(rows * texts, of_text[0], tokens, tokens, of_text[1], True, text.attention_dropout, text.depth),
        Kind(rows, of_text[0], texts * tokens, 1 + seen, of_text[1], False, text.attention_dropout, fused),
    ]
    if isinstance(config, PretrainingConfig):
        decoder = vision.decoder_width // vision.decoder_heads
        length = 1 + vision.patches
        found.append(Kind(rows, vision.decoder_heads, length, length, decoder, False, 0.0, vision.decoder_depth))
    else:
        found.append(Kind(rows, of_text[0], tokens, tokens, of_text[1], True, text.attention_dropout, 2 * text.decoder_depth))
    return [kind for kind in found if kind.times]


def measure(kinds: Sequence[Kind], device: torch.device, dtype: torch.dtype) -> dict[str, list[float | None]]:
    """Seconds of each kind forward and backward, as often as a step computes it, by each kernel; None where it cannot."""
    return {name: [_seconds(kind, backend, device, dtype) for kind in kinds] for name, backend in KERNELS.items()}


def fastest_order(times: Mapping[str, Sequence[float | None]]) -> tuple[str, ...]:
    """The order of kernels that takes least time for all kinds together; each kind takes the first kernel that can compute it."""
    able = [name for name, found in times.items() if any(one is not None for one in found)]
    kinds = range(len(next(iter(times.values()))))

    def cost(order: Sequence[str]) -> float:
        firsts = [next((one for name in order if (one := times[name][kind]) is not None), 0.0) for kind in kinds]
        return sum(firsts)

    best = min(itertools.permutations(able), key=cost)
    return (*best, *(name for name in times if name not in able))


def chosen(config: PretrainingConfig | FinetuningConfig, rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The order for micro-batches of ``rows`` samples, as rank 0 measures it; empty (PyTorch's own) on a CPU or with plain kernels.

    Collective.
    """
    if device.type != "cuda" or config.training.kernels == "plain":
        return ()

    def best() -> tuple[str, ...]:
        with torch.random.fork_rng(devices=[device]):
            return fastest_order(measure(kinds_of(config, rows), device, dtype))

    return on_first_rank(best)


def remark(order: Sequence[str]) -> str:
    """What a run says of its order; nothing of PyTorch's own."""
    return f"Attention takes the first of these kernels that can compute it: {', '.join(order)}." if order else ""


_in_use: list[AbstractContextManager[None]] = []


def use(order: Sequence[str]) -> None:
    """Let PyTorch try its kernels in this order, in the whole process, from now on. Empty: in its own order."""
    while _in_use:
        _in_use.pop().__exit__(None, None, None)
    if order:
        _in_use.append(sdpa_kernel([KERNELS[name] for name in order], set_priority=True))
        _in_use[-1].__enter__()


def _seconds(kind: Kind, backend: SDPBackend, device: torch.device, dtype: torch.dtype) -> float | None:
    rows = min(kind.rows, _MOST_ROWS)

    def drawn(length: int) -> torch.Tensor:
        x = torch.randn(rows, length, kind.heads, kind.width, device=device, dtype=dtype)
        return x.transpose(1, 2).requires_grad_()  # as it lies in memory behind a projection

    query, key, value = drawn(kind.queries), drawn(kind.keys), drawn(kind.keys)
    mask = torch.ones(rows, 1, 1, kind.keys, dtype=torch.bool, device=device) if kind.masked else None
    towards = torch.randn_like(query)

    def once() -> None:
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=kind.dropout)
        torch.autograd.grad(found, (query, key, value), towards)

    try:
        with sdpa_kernel(backend):
            once()
            once()
            started = _now(device)
            for _ in range(_REPEATS):
                once()
            return (_now(device) - started) / _REPEATS * kind.times * kind.rows / rows
    except RuntimeError:  # "No available kernel", and what a kernel says of a card that it does not know
        return None


def _now(device: torch.device) -> float:
    """Seconds on the clock, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
