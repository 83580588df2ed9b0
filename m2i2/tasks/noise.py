"""Counter-based noise: each value depends only on (key, row, column), never on earlier draws.

The same on any device and for any number of ranks, each of which draws its own rows only.
"""

import hashlib

from torch import Tensor

from m2i2.tasks.task import Key

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
"""The constants of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), as signed numbers."""


def counter_start(key: Key, stream: int) -> int:
    """Where the counter of a key begins; ``stream`` tells draws of one key apart."""
    return int.from_bytes(hashlib.sha256(repr((*key, stream)).encode()).digest()[:8], "little", signed=True)


def gumbel_noise(start: int | Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gumbel noise [b, B] float32 of the numbered ``rows`` [b] and ``columns`` [B]; ``start`` is a `counter_start`."""
    state = _mixed(rows * _GOLDEN + start)
    bits = _shifted(_mixed(state.unsqueeze(1) + (columns + 1) * _GOLDEN), 11)  # 53 bits
    uniform = (bits.double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log().float()


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of the result depends on every bit of ``x``."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """``x`` >> ``bits`` of an unsigned number."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
