"""Products whose result is known: what a rank alone can be checked by, and which of two ranks is wrong."""

import torch
from torch import Tensor
from torch.nn import functional as F

from m2i2.distributed import checksum


class KnownAnswers:
    """Two products as large as a layer's.

    One is of the numbers -1, 0 and 1: it is exact in any precision and any order of summation, so that its result is known without
    trusting the device. The other is of random numbers, with all their bits: its result must be that of the first time.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """``dtype``: of the products, as training has it."""
        self._device, self._dtype = device, dtype
        self._side = 2048 if device.type == "cuda" else 256
        self._exact: tuple[Tensor, Tensor, Tensor] | None = None
        self._stored: Tensor | None = None

    @torch.no_grad()
    def wrong(self) -> bool:
        """Whether a product is not what it must be. Waits for the device."""
        generator = torch.Generator().manual_seed(2023)
        if self._exact is None:
            x, y = (torch.randint(-1, 2, (self._side, self._side), generator=generator) for _ in range(2))
            answer = (x.double() @ y.double().T).to(self._dtype)  # on the host; sums stay far below 2^8, which bfloat16 holds
            self._exact = x.to(self._device, self._dtype), y.to(self._device, self._dtype), answer.to(self._device)
        x, y, answer = self._exact
        if not torch.equal(F.linear(x, y), answer):
            return True
        shape = (2, self._side, self._side)
        x, y = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self._device, self._dtype)
        found = checksum([F.linear(x, y)])
        if self._stored is None:
            self._stored = found
        return not torch.equal(found, self._stored)
