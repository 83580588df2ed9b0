"""Half-precision copies of the weights that matrix products read, in place of a cast for every product.

Autocast casts every weight in every step, and the gradient of every weight back, with a kernel for each. Copies that lie in memory
as the float32 weights do are refreshed by one kernel for each stretch of memory. Gradients arrive in half precision, as under
autocast, and become float32 together.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from m2i2.tasks.flat import Pair, Runs, lay_out

_READERS = (nn.Linear, nn.Conv2d)
"""Modules whose weights only matrix products read."""
_BETWEEN = (nn.LayerNorm,)
"""Modules whose weights are copied too, unused, because they lie between those: fewer and longer stretches."""


class _Place(NamedTuple):
    """Where a module keeps a weight."""

    module: nn.Module
    name: str
    weight: nn.Parameter
    copy: nn.Parameter


class HalfCopies:
    """Copies for some modules. Their weights must have their places in memory already."""

    def __init__(self, modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
        """``dtype``: bfloat16 or float16. Word embeddings are not copied: their rows are looked up in float32."""
        copies = self._copies = dict[nn.Parameter, nn.Parameter]()
        self._places: list[_Place] = []
        for one in (part for module in modules for part in module.modules()):
            if isinstance(one, (*_READERS, *_BETWEEN)):
                for name, weight in one.named_parameters(recurse=False):
                    copy = copies.get(weight)
                    if copy is None:
                        copy = copies[weight] = nn.Parameter(weight.detach().to(dtype), requires_grad=weight.requires_grad)
                        copy.copy_of = weight  # type: ignore[attr-defined]
                    if isinstance(one, _READERS):
                        self._places.append(_Place(one, name, weight, copy))
        pairs = [Pair(copy, weight) for weight, copy in copies.items()]
        lay_out(pairs)
        self._runs = Runs(pairs)
        self._trained = [(weight, copy) for weight, copy in copies.items() if weight.requires_grad]

    @property
    def trained(self) -> dict[int, nn.Parameter]:
        """The copies of weights that are trained, by the weight's id."""
        return {id(weight): copy for weight, copy in self._trained}

    def take(self, weights: Iterable[nn.Parameter]) -> list[Tensor | None]:
        """The gradients of ``weights``, of their copies where those have any, to be used once: nothing keeps them here."""
        found: list[Tensor | None] = []
        for weight in weights:
            copy = self._copies.get(weight, weight)
            holder = weight if copy.grad is None else copy
            found.append(holder.grad)
            holder.grad = None
        return found

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights as they are now."""
        for run in self._runs():
            run.follower.copy_(run.leader)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within it the modules have the copies as their weights: in forward passes, and in backward passes that compute again."""
        for place in self._places:
            place.module._parameters[place.name] = place.copy
        try:
            yield
        finally:
            for place in self._places:
                place.module._parameters[place.name] = place.weight

    @torch.no_grad()
    def collect(self, *, first: bool) -> None:
        """Hand the copies' gradients to the weights, which have places for theirs.

        ``first``: of the step, so that nothing stands there yet.
        """
        found = [(weight.grad, copy.grad) for weight, copy in self._trained if weight.grad is not None and copy.grad is not None]
        if found:
            gradients, of_copies = ([pair[side] for pair in found] for side in (0, 1))
            (torch._foreach_copy_ if first else torch._foreach_add_)(gradients, of_copies)
        for _, copy in self._trained:
            copy.grad = None
