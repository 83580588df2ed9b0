"""The registry of objectives: a name, a weight, and a function of the states of a micro-batch.

The paper's four are built in; their weights are the settings ``objectives.mim`` and so on. An objective from outside the
package is a decorated function in a module that ``objectives.plugins`` names:

    from m2i2.objectives.registry import objective

    @objective("alignment", weight=0.1)
    def alignment(states):
        return (states.image_features - states.text_features).square().sum(-1).mean()
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from m2i2.config import ObjectivesConfig
from m2i2.errors import M2I2Error
from m2i2.objectives.itm import itm_loss
from m2i2.objectives.mim import mim_loss
from m2i2.objectives.mlm import mlm_loss
from m2i2.objectives.states import States

Loss = Callable[[States], Tensor]


@dataclass(frozen=True)
class Objective:
    """One term of the loss."""

    name: str
    weight: float
    loss: Loss
    """States of a micro-batch -> a scalar. Ranks' values must average to that of the concatenated batch."""
    reads: frozenset[str] = frozenset()
    """Which of ``matching`` and ``words`` the function reads."""


BUILT_IN: dict[str, tuple[Loss, frozenset[str]]] = {
    "mim": (lambda s: mim_loss(*s.pixels), frozenset()),
    "mlm": (lambda s: mlm_loss(*s.words, distillation=s.distillation), frozenset({"words"})),
    "itm": (lambda s: itm_loss(*s.matching), frozenset({"matching"})),
    "itc": (lambda s: s.contrast.loss, frozenset()),
}
_RESERVED = {
    *(*BUILT_IN, "loss", "step", "epoch", "lr", "temperature", "distillation", "samples_per_s", "data_wait", "memory_gib", "mfu"),
    *("skipped_steps", "unreadable", "pairs", "selection_accuracy"),
}
"""Columns of log.jsonl and validation.jsonl."""
_plugins: dict[str, dict[str, Objective]] = {}
"""Objectives by the module that registered them."""


def objective(name: str, weight: float = 1.0, reads: Sequence[str] = ()) -> Callable[[Loss], Loss]:
    """Register the decorated function as an objective; its module is named by ``objectives.plugins``."""
    if not name.isidentifier() or name in _RESERVED or name.startswith(("image_to_text", "text_to_image", "queue_age")):
        raise M2I2Error(f"An objective cannot be called {name!r}; choose a word that no built-in loss or log column has.")
    if unknown := set(reads) - {"matching", "words"}:
        raise M2I2Error(f"The objective {name} reads {', '.join(sorted(unknown))}; it can read matching and words.")

    def add(loss: Loss) -> Loss:
        mine = _plugins.setdefault(loss.__module__, {})
        if name in mine and mine[name].loss.__qualname__ != loss.__qualname__:  # a module that is imported again registers the same
            raise M2I2Error(f"{loss.__module__} registers two objectives called {name!r}; rename one of them.")
        mine[name] = Objective(name, weight, loss, frozenset(reads))
        return loss

    return add


def active(config: ObjectivesConfig) -> list[Objective]:
    """The objectives of a run: the built-in ones whose weight is not 0, then those of ``objectives.plugins``."""
    found = [Objective(name, getattr(config, name), loss, reads) for name, (loss, reads) in BUILT_IN.items()]
    found = [one for one in found if one.weight]
    for module in dict.fromkeys(config.plugins):
        found += [one for one in _of_module(module) if one not in found]
    names = [one.name for one in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise M2I2Error(f"Two of objectives.plugins register an objective called {repeated[0]!r}; rename one of them.")
    return found


def _of_module(name: str) -> list[Objective]:
    """The objectives that a module registers; it is looked for in the working directory too."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        importlib.import_module(name)
    except M2I2Error:
        raise
    except Exception as e:  # a plug-in may raise anything
        raise M2I2Error(
            f"objectives.plugins={name} cannot be imported ({type(e).__name__}: {e}). Name a Python module of the working "
            f"directory or of an installed package, such as my_lab.objectives."
        ) from e
    finally:
        if added:
            sys.path.remove(here)
    found = [one for module, mine in _plugins.items() if module == name or module.startswith(f"{name}.") for one in mine.values()]
    if not found:
        raise M2I2Error(
            f"objectives.plugins={name} registers no objective; decorate a function of that module with "
            f'@objective("name", weight=0.1) of m2i2.objectives.registry.'
        )
    return found
