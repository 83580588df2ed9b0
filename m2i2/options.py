"""Settings as text: dotted overrides from the command line, JSON to and from disk. Unknown keys are fatal."""

import ast
import dataclasses
import difflib
import inspect
import json
import math
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from m2i2.config import completed
from m2i2.errors import M2I2Error, shown
from m2i2.files import read_object

C = TypeVar("C")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


_ELSEWHERE = {
    "optimizer.lr": "learning_rate base_lr peak_lr max_lr",
    "optimizer.final_lr": "min_lr eta_min lr_min end_lr",
    "optimizer.warmup_epochs": "warmup warmup_steps num_warmup_steps warmup_ratio",
    "optimizer.weight_decay": "wd decay",
    "optimizer.betas": "beta1 beta2 adam_beta1 adam_beta2",
    "optimizer.eps": "epsilon adam_epsilon",
    "optimizer.clip": "grad_clip clip_grad gradient_clipping gradient_clip_val max_grad_norm grad_clip_norm max_norm",
    "training.epochs": "epoch num_epochs max_epochs num_train_epochs n_epochs",
    "training.max_steps": "steps num_steps max_iters max_train_steps total_steps iterations",
    "training.batch": "batch_size global_batch_size train_batch_size per_device_train_batch_size micro_batch_size bs",
    "training.accumulation": "gradient_accumulation_steps grad_accum accum_freq accum_iter accumulate_grad_batches",
    "training.precision": "dtype fp16 bf16 amp mixed_precision",
    "training.seed": "random_seed",
    "training.save_every": "save_steps save_interval save_freq checkpoint_every",
    "training.log_every": "logging_steps log_interval print_freq",
    "training.checkpoint_activations": "gradient_checkpointing grad_checkpointing activation_checkpointing",
    "data.workers": "num_workers n_workers dataloader_num_workers",
    "data.shards": "data_path data_dir dataset train_data",
    "data.max_tokens": "max_length max_seq_length max_len",
    "vision.image_size": "img_size resolution image_res input_size",
    "objectives.queue": "queue_size",
    "objectives.projection": "embed_dim projection_dim",
    "objectives.temperature": "temp tau",
    "objectives.image_mask_ratio": "mask_ratio",
    "objectives.text_mask_ratio": "mlm_probability",
    "objectives.momentum": "ema ema_decay momentum_decay",
    "answering.momentum": "ema ema_decay momentum_decay",
    "objectives.distillation": "alpha distill",
    "answering.distillation": "alpha distill",
    "start.checkpoint": "pretrained init_checkpoint load_from resume",
    "start.text": "text_encoder bert",
    "start.image": "image_encoder vit",
    "validation.every": "eval_every eval_steps eval_interval",
}
"""Our settings, and what Hugging Face, Lightning, timm, open_clip, DeepSpeed and ALBEF call the same."""


def suggested(key: str, known: Sequence[str]) -> list[str]:
    """The ``known`` settings that somebody who writes ``key`` may mean: of the same name or meaning, else of a similar name."""
    name = key[:100].rpartition(".")[2].lower().replace("-", "_")
    same = [one for one in known if one.rpartition(".")[2] == name or name in _ELSEWHERE.get(one, "").split()]
    return same[:3] or difflib.get_close_matches(key[:100], known, n=3)


def _unknown(key: str, known: Sequence[str], all_known: Sequence[str]) -> M2I2Error:
    """``known``: the keys of the same section."""
    near = suggested(key, all_known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the keys here are {', '.join(known)}."
    return M2I2Error(f"Unknown setting {shown(key)}; {hint} --help lists all of them.")


def _typed(value: Any, kind: Any, key: str, keys: Sequence[str]) -> Any:
    """``value``, from JSON or from a word of the command line, as the type ``kind`` of the setting ``key``, one of ``keys``."""
    wrong = M2I2Error(f"{key}={shown(value)} is not {_describe(kind)}.")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise wrong
        return _section(typing.cast(type, kind), value, key + ".", keys)
    if origin is Literal:
        if value not in arguments:
            raise wrong
        return value
    if origin is tuple:
        parts = [p for p in value.split(",") if p] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise wrong
        if arguments[-1] is Ellipsis:
            return tuple(_typed(p, arguments[0], key, keys) for p in parts)
        if len(parts) != len(arguments):
            raise wrong
        return tuple(_typed(p, k, key, keys) for p, k in zip(parts, arguments, strict=True))
    if kind is bool:
        word = str(value).lower()
        if word not in ("true", "false"):
            raise wrong
        return word == "true"
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    if isinstance(value, bool):
        raise wrong
    try:
        if kind is int:
            number = float(value)
            if number != int(number):
                raise wrong
            return int(number) if not isinstance(value, str) or "e" in value.lower() or "." in value else int(value)
        if not math.isfinite(number := float(value)):
            raise wrong
        return number
    except (TypeError, ValueError, OverflowError):
        raise wrong from None


def _describe(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        names = [a.__name__ for a in arguments if isinstance(a, type)]
        return "a list of words, comma-separated" if arguments[-1] is Ellipsis else ",".join(names)
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, "a section")


def from_dict(cls: type[C], values: Mapping[str, Any], prefix: str = "") -> C:
    """Settings of type ``cls`` from nested mappings; a key that is not there is an M2I2Error, a missing one its default."""
    return _section(cls, values, prefix, [key for key, *_ in leaves(cls, prefix)])


def _section(cls: type[C], values: Mapping[str, Any], prefix: str, keys: Sequence[str]) -> C:
    """The section whose keys begin with ``prefix``."""
    hints = _hints(typing.cast(Any, cls))
    if not isinstance(values, Mapping):
        raise M2I2Error(f"The settings {prefix.rstrip('.') or cls.__name__} must be an object, they are {shown(values)}.")
    for key in values:
        if key not in hints:
            raise _unknown(prefix + key, [prefix + k for k in hints], keys)
    if upgraded := getattr(cls, "upgraded", None):
        values = upgraded(values)
    needed = (f.name for f in dataclasses.fields(typing.cast(Any, cls)) if f.default is f.default_factory is dataclasses.MISSING)
    if missing := [name for name in needed if name not in values]:
        raise M2I2Error(f"The setting {prefix}{missing[0]} is missing; it has no default.")
    return cls(**{key: _typed(value, hints[key], prefix + key, keys) for key, value in values.items()})


def to_dict(settings: Any) -> dict[str, Any]:
    """Settings as nested plain dictionaries, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def override(settings: C, assignments: Sequence[str]) -> C:
    """``settings`` with ``section.key=value`` assignments applied, all at once, so that their order does not matter."""
    tree = to_dict(settings)
    keys = [key for key, *_ in leaves(type(settings))]
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise M2I2Error(f"{assignment!r} is not a setting; write section.key=value, for example training.epochs=5.")
        if key not in keys or key == "preset":
            raise _unknown(key, keys, keys)
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[name] = value
    return from_dict(type(settings), tree)


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, type, explanation) of every single setting below ``cls``."""
    explanations = _explanations(cls)
    for name, kind in _hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from leaves(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            yield prefix + name, kind, explanations.get(name, "")


@cache
def _explanations(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass and of those that it extends, first sentence as it stands."""
    found: dict[str, str] = {}
    for base in cls.__bases__:
        if dataclasses.is_dataclass(base):
            found |= _explanations(base)
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    for field_node, after in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field_node, ast.AnnAssign)
            and isinstance(field_node.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[field_node.target.id] = " ".join(str(after.value.value).split())
    return found


def explain(settings: Any) -> str:
    """Every setting with its present value, its choices and what it means, for ``--help``; as wide as the terminal."""
    columns = max(40, shutil.get_terminal_size().columns - 2)
    rows = []
    for key, kind, text in leaves(type(settings)):
        value: Any = settings
        for name in key.split("."):
            value = getattr(value, name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        choices = f" [{'|'.join(map(str, typing.get_args(kind)))}]" if typing.get_origin(kind) is Literal else ""
        rows.append(f"  {key}={shown}{choices}")
        rows += textwrap.wrap(text, columns, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    return "\n".join(rows)


def read_settings(cls: type[C], path: Path) -> C:
    """Settings from a JSON file, as stored beside every run."""
    return from_dict(cls, completed(read_object(path, "settings")))


def differences(one: Any, other: Any) -> list[str]:
    """Dotted keys whose values differ between two settings of the same type."""

    def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    left, right = dict(flat(to_dict(one))), dict(flat(to_dict(other)))
    return [key for key in left if left[key] != right.get(key, types)]
