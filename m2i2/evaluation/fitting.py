"""The least of a smooth loss over all data at once: how the linear probe and the baseline of a question's words are fitted."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def minimise(loss: Callable[[], Tensor], parameters: Iterable[Tensor], **options: Any) -> None:
    """L-BFGS with a strong-Wolfe line search, from the values that ``parameters`` have; ``options`` are those of torch's."""
    optimizer = torch.optim.LBFGS(list(parameters), line_search_fn="strong_wolfe", **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss()
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(closure)
