"""A recipe (JSON) and the cells that it asks for: pretrainings, and finetunings with their evaluation."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from m2i2.config import require
from m2i2.errors import M2I2Error, shown
from m2i2.files import read_object
from m2i2.options import from_dict

VARIANTS: dict[str, tuple[str, ...] | None] = {
    "full": (),
    "no pretraining": None,
    "no MIM": ("objectives.mim=0",),
    "no ITC": ("objectives.itc=0",),
    "no ITM": ("objectives.itm=0",),
    "no MLM": ("objectives.mlm=0",),
    "no queue": ("objectives.queue=0",),
    "local negatives": ("objectives.negatives=local",),
    "flips on": ("data.flip=true",),
    "with rewrites": (),
}
"""What each variant changes in pretraining (None: it has none). "with rewrites" pretrains as "full" does and finetunes on the
rewrites of test questions as well: what that leak is worth. "local negatives" differs from "full" on several ranks only."""
_FINETUNING = {"with rewrites": ("answering.rewrites=true",), "flips on": ("data.flip=true",)}
MOST_SEEDS = 1000
"""Of a data set or a pretraining."""
_SAME_PRETRAINING = {"with rewrites": "full"}
TOOLS = ("make_shards.py", "make_tokenizer.py", "fetch_minilm.py", "fetch_vit.py", "convert.py")
"""What a recipe may prepare with: tools of this project, by name."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")
_SETTING = re.compile(r"[a-z0-9_]+\.[a-z0-9_.]+=")
_DATA = "{data}"


@dataclass(frozen=True, kw_only=True)
class DatasetPlan:
    """One data set to finetune on."""

    shards: str
    variants: tuple[str, ...] = ("full", "no pretraining", "no MIM", "no ITC")
    seeds: int = 1
    """Finetunings of each variant, with the seeds 0, 1, ..."""
    once: tuple[str, ...] = ()
    """Further variants, finetuned with seed 0 alone."""
    settings: tuple[str, ...] = ()
    note: str = ""
    """What a reader of its table must know."""

    def __post_init__(self) -> None:
        require(1 <= self.seeds <= MOST_SEEDS, f"seeds={self.seeds} must lie between 1 and {MOST_SEEDS}.")

    def of_seed(self, seed: int) -> tuple[str, ...]:
        """The variants that are finetuned with a seed."""
        return (*(self.variants if seed < self.seeds else ()), *(self.once if seed == 0 else ()))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a set of experiments. It may come from elsewhere: it runs nothing but this project's own tools.

    Paths are relative to the work folder and stay in it; ``{data}`` in `prepare` is --data, and paths that start there stay there.
    """

    name: str
    about: str = ""
    prepare: tuple[str, ...] = ()
    """Commands of tools/ that make weights and shards, as words: "make_shards.py vqa slake {data}/slake --output shards/slake"."""
    preset: str = "small"
    pretraining_shards: tuple[str, ...]
    pretraining: tuple[str, ...] = ()
    """Settings of every pretraining."""
    pretraining_seeds: int = 1
    """Pretrainings of each variant; finetuning seed s starts from pretraining seed s modulo this number."""
    start: tuple[str, ...] = ()
    """Settings that say where a pretraining, and a finetuning but for what was pretrained, starts: start.text=weights/minilm."""
    finetuning: tuple[str, ...] = ()
    """Settings of every finetuning."""
    evaluation: tuple[str, ...] = ("--protocol", "clean", "--generate-too")
    datasets: dict[str, Any] = field(default_factory=dict)
    """By name; see `DatasetPlan`."""

    def __post_init__(self) -> None:
        count = self.pretraining_seeds
        require(1 <= count <= MOST_SEEDS, f"pretraining_seeds={count} must lie between 1 and {MOST_SEEDS}.")

    @property
    def plans(self) -> dict[str, DatasetPlan]:
        """The data sets, checked."""
        return {name: from_dict(DatasetPlan, plan, f"datasets.{name}.") for name, plan in self.datasets.items()}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: a pretraining, or a finetuning with its evaluation."""

    name: str
    variant: str
    seed: int
    dataset: str = ""
    """Empty for a pretraining."""
    needs: str = ""
    """The pretraining that it starts from."""


def read_recipe(path: Path) -> Recipe:
    """A recipe file; M2I2Error for what is unknown or missing."""
    values = read_object(path, "recipe")
    if missing := [name for name in ("name", "pretraining_shards", "datasets") if name not in values]:
        raise M2I2Error(f"The recipe {path} has no {missing[0]!r}; see docs/recipes/ for one that is whole.")
    plans = values.pop("datasets")
    if not isinstance(plans, dict) or not plans:
        raise M2I2Error(f"The recipe {path} names no datasets.")
    recipe = replace(from_dict(Recipe, values), datasets=plans)
    for dataset, plan in recipe.plans.items():
        if unknown := [variant for variant in plan.of_seed(0) if variant not in VARIANTS]:
            raise M2I2Error(f"{path}, {dataset}: there is no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}.")
    try:
        _check(recipe)
    except M2I2Error as e:
        raise M2I2Error(f"The recipe {path} was refused. {e}") from e
    return recipe


def _check(recipe: Recipe) -> None:
    """M2I2Error for a recipe that would run something else than this project's tools, or leave its folders."""
    if not NAME.fullmatch(recipe.name):
        raise M2I2Error(f"The name {shown(recipe.name)} is not valid: a name consists of letters, digits, spaces, dots, _ and -.")
    for line in recipe.prepare:
        prepared(line, Path(_DATA))
    plans = recipe.plans.values()
    settings = (recipe.start, recipe.pretraining, recipe.finetuning, *(plan.settings for plan in plans))
    for word in itertools.chain(*settings):
        refuse_setting(word)
    for word in (recipe.preset, *recipe.pretraining_shards, *(plan.shards for plan in plans)):
        if word.startswith("-"):
            raise M2I2Error(f"{shown(word)} starts with -; name a preset, or a folder of shards.")
        refuse_paths(word)
    for word in recipe.evaluation:
        if word.partition("=")[0] in ("--output", "--checkpoint", "--shards"):
            raise M2I2Error(f"evaluation: the recipe's cells set {shown(word)} themselves; leave it out.")
        refuse_paths(word)


def refuse_setting(word: str) -> None:
    """M2I2Error for a word that is not a setting, imports a module, or names a path outside the recipe's folders."""
    if not _SETTING.match(word):
        raise M2I2Error(f"{shown(word)} is not a setting; write section.key=value, for example training.epochs=5.")
    if word.startswith("objectives.plugins="):
        raise M2I2Error(f"{shown(word)} would import a module by its name, which a recipe may not do; train such a run by hand.")
    refuse_paths(word)


def refuse_paths(word: str) -> None:
    """M2I2Error for a word with a path that leaves its folder: absolute, from a home folder, or upwards."""
    for part in re.split(r"[=,]", word):
        if part.startswith(("/", "~", "\\")) or ".." in re.split(r"[/\\]", part) or not part.isprintable():
            raise M2I2Error(
                f"{shown(word)} names a path outside the recipe's folders; write paths from the work folder, or from {_DATA} in "
                f"prepare, without '..'."
            )


def prepared(line: str, data: Path) -> tuple[str, list[str], str]:
    """A command of `prepare`: the tool's name, its words with ``data`` in its place, and its --output in the work folder.

    M2I2Error for another program than one of `TOOLS`, and for a path that leaves its folder.
    """
    tool, *words = line.split() or [""]
    if tool not in TOOLS:
        raise M2I2Error(
            f"prepare: {shown(tool)} is not one of the tools {', '.join(TOOLS)}, and nothing else is run. In: {shown(line)}"
        )
    for word in words:
        if word != _DATA and _DATA in word.removeprefix(f"{_DATA}/"):
            raise M2I2Error(f"prepare: in {shown(word)} {_DATA} is not the beginning of a path.")
        refuse_paths(word.removeprefix(_DATA + "/"))
    outputs = [after for option, after in itertools.pairwise(words) if option == "--output"]
    if len(outputs) != 1 or outputs[0].startswith(("-", _DATA)) or any(word.startswith("--output=") for word in words):
        raise M2I2Error(f"prepare: {shown(line)} needs one --output FOLDER, below the work folder.")
    return tool, [str(data) + word.removeprefix(_DATA) if word.startswith(_DATA) else word for word in words], outputs[0]


def cells(recipe: Recipe) -> list[Cell]:
    """Every cell in the order in which they run: by seed, so that a first table stands early; a pretraining before its users."""
    found: dict[str, Cell] = {}
    plans = recipe.plans.items()
    for seed in range(max(plan.seeds for _, plan in plans)):
        for dataset, plan in plans:
            for variant in plan.of_seed(seed):
                needs = ""
                if VARIANTS[variant] is not None:
                    pretraining = _pretraining(variant, seed % recipe.pretraining_seeds)
                    found.setdefault(pretraining.name, pretraining)
                    needs = pretraining.name
                name = _slug(f"{dataset} {variant} seed {seed}")
                found[name] = Cell(name=name, variant=variant, seed=seed, dataset=dataset, needs=needs)
    return list(found.values())


def _pretraining(variant: str, seed: int) -> Cell:
    variant = _SAME_PRETRAINING.get(variant, variant)
    return Cell(name=_slug(f"pretraining {variant} seed {seed}"), variant=variant, seed=seed)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())


def commands(recipe: Recipe, cell: Cell) -> Iterator[list[str]]:
    """The launchers that make a cell, as words: the launcher's name, then its arguments."""
    if not cell.dataset:
        changes = VARIANTS[cell.variant] or ()
        words = ["--preset", recipe.preset, "--shards", *recipe.pretraining_shards, "--output", f"runs/{cell.name}"]
        yield ["pretrain", *words, *recipe.start, *recipe.pretraining, *changes, f"training.seed={cell.seed}"]
        return
    plan = recipe.plans[cell.dataset]
    words = ["--preset", recipe.preset, "--shards", plan.shards, "--output", f"runs/{cell.name}"]
    words += [*(["--checkpoint", f"runs/{cell.needs}"] if cell.needs else []), *recipe.start]
    changes = _FINETUNING.get(cell.variant, ())
    yield ["finetune", *words, *recipe.finetuning, *plan.settings, *changes, f"training.seed={cell.seed}"]
    output = ["--output", f"runs/{cell.name}/evaluation"]
    yield ["evaluate", "--checkpoint", f"runs/{cell.name}", "--shards", plan.shards, *recipe.evaluation, *output]
