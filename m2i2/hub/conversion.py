"""One model in three formats: the official ``.pth``, a checkpoint of ours, a Hugging Face folder; tensors never change a bit.

Everything that a format can hold comes along: student, teacher, queue, tokenizer, settings. What only the official file has
(its teacher's pixel decoder) lies in ``official.safetensors`` beside the others, so that the way back is exact.
Optimizer states are not converted.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from m2i2.config import AnsweringConfig, FinetuningConfig, PretrainingConfig
from m2i2.data.text.tokenizer import Tokenizer, load_tokenizer, require_size
from m2i2.errors import M2I2Error
from m2i2.files import read_object, replacing, unfinished, write_json
from m2i2.hub.configuration import M2I2Config
from m2i2.models.start import official_architecture, with_stored
from m2i2.models.weights import State, listed, of_student, of_teacher, read_checkpoint, read_state
from m2i2.options import from_dict, to_dict
from m2i2.presets import preset
from m2i2.terminal import say
from m2i2.training.checkpoint import find_checkpoint, read_tensors, seal
from m2i2.training.tensor_files import write_tensors

Format = Literal["official", "checkpoint", "hugging-face"]
Settings = PretrainingConfig | FinetuningConfig
_QUEUES = ("image_queue", "text_queue", "queue_ptr")


@dataclass
class Weights:
    """A model out of any format, under our names."""

    settings: Settings
    student: State
    teacher: State = field(default_factory=dict)
    """Empty where there is none."""
    queue: State = field(default_factory=dict)
    """As `FeatureQueue`'s state; empty where there is none."""
    official: State = field(default_factory=dict)
    """Entries of an official file that nothing here can give back."""
    tokenizer: Tokenizer | None = None

    @property
    def answers(self) -> bool:
        """Whether it is an answering model; else a pretrained one."""
        return isinstance(self.settings, FinetuningConfig)

    def tensors(self) -> State:
        """All of it under names that tell the parts apart."""
        parts = {"student": self.student, "teacher": self.teacher, "queue": self.queue, "official": self.official}
        return {f"{part}/{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


def format_of(path: Path) -> Format:
    """What ``path`` holds; M2I2Error for nothing of ours."""
    if path.is_file():
        return "official"
    if (path / "config.json").is_file() and not (path / "manifest.json").exists():
        return "hugging-face"
    find_checkpoint(path)
    return "checkpoint"


def read(path: Path, tokenizer: str = "", heads: tuple[int, int] | None = None) -> Weights:
    """A model in any of the formats. ``tokenizer`` (for official files) names one; ``heads``: see `read_official`."""
    match format_of(path):
        case "official":
            weights = read_official(path, heads)
            weights.tokenizer = load_tokenizer(tokenizer) if tokenizer else None
        case "hugging-face":
            weights = _read_hugging_face(path)
        case _:
            weights = _read_checkpoint(find_checkpoint(path))
    if weights.tokenizer is not None:
        require_size(weights.tokenizer, weights.settings.text.vocabulary_size, str(path))
    return weights


# --- official files


def read_official(path: Path, heads: tuple[int, int] | None = None) -> Weights:
    """An official ``.pth`` of pretraining or answering.

    ``heads``: attention heads of image encoder and text, which no tensor tells; default: those that the file stores where we
    wrote it, else one for every 64 of the width, as in the published models.
    """
    loaded = read_checkpoint(path)
    state = read_state(path)
    student, teacher = of_student(state), of_teacher(state)
    for part in (student, teacher):
        for name in [name for name in part if name.endswith(_TIED)]:
            del part[name]
    stored = loaded.get("config") if isinstance(loaded, Mapping) else None
    vision, text = with_stored(*official_architecture(student), stored if isinstance(stored, Mapping) else {})
    if heads:
        vision, text = replace(vision, heads=heads[0]), replace(text, heads=heads[1])
    teacher = {name: tensor for name, tensor in teacher.items() if not _pixel_decoder(name)}
    pretraining, finetuning = preset("official")
    settings: Settings
    queue: State = {}
    if any(name.startswith("text_decoder.") for name in student):
        settings = replace(finetuning, vision=vision, text=text)
    else:
        objectives = replace(pretraining.objectives, projection=len(student["vision_proj.bias"]))
        if "image_queue" in state:
            queue = _queue_of(state)
            objectives = replace(objectives, queue=len(queue["image"]))
        settings = replace(pretraining, vision=vision, text=text, objectives=objectives)
        student["temp"] = student["temp"].reshape(1)
    weights = Weights(settings, student, teacher, queue)
    made = official_state(weights)
    weights.official = {name: tensor for name, tensor in state.items() if name not in made or not same(made[name], tensor)}
    if isinstance(loaded, Mapping) and (more := [str(key) for key in loaded if key in ("optimizer", "lr_scheduler")]):
        say(f"{path}: not converted: {', '.join(more)}.")
    return weights


_TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "embeddings.position_ids")


def _pixel_decoder(name: str) -> bool:
    return name.startswith(("visual_encoder.decoder_", "visual_encoder.mask_token"))


def _queue_of(state: State) -> State:
    """Official queues [dim, size] as ours [size, dim]; whose features they are is not known (-1)."""
    image, text = (state[f"{kind}_queue"].T.contiguous() for kind in ("image", "text"))
    unknown = torch.full((len(image),), -1)
    pointer = state["queue_ptr"].reshape(()).clone()
    return {"image": image, "text": text, "image_ids": unknown, "text_ids": unknown.clone(), "pointer": pointer}


def official_state(weights: Weights) -> State:
    """The official state dictionary: with its tied copies, its ``_m`` teacher and its queues.

    A teacher of ours has no pixel decoder; the official class has one that it never uses, and gets the student's.
    """
    teacher = dict(weights.teacher)
    if teacher and not weights.answers:
        teacher |= {name: tensor for name, tensor in weights.student.items() if _pixel_decoder(name)}
    state: State = {}
    for suffix, part in (("", weights.student), ("_m", teacher)):
        for name, tensor in part.items():
            head, dot, tail = name.partition(".")
            if name == "temp":
                state[name] = tensor.reshape(())
                continue
            state[head + suffix + dot + tail] = tensor
            if tail.endswith("embeddings.position_embeddings.weight"):
                ids = torch.arange(len(tensor))[None]
                state[head + suffix + dot + tail.replace("position_embeddings.weight", "position_ids")] = ids
            elif tail == "cls.predictions.bias":
                state[f"{head}{suffix}.cls.predictions.decoder.bias"] = tensor
                words = "bert.embeddings.word_embeddings.weight"
                state[f"{head}{suffix}.cls.predictions.decoder.weight"] = part[f"{head}.{words}"]
    if weights.queue:
        state["image_queue"], state["text_queue"] = (weights.queue[kind].T.contiguous() for kind in ("image", "text"))
        state["queue_ptr"] = weights.queue["pointer"].reshape(1)
    return state | weights.official


def _write_official(weights: Weights, path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in official_state(weights).items()}
    with replacing(path) as file:
        torch.save({"model": state, "config": to_dict(weights.settings)}, file)


def beyond_official(settings: Settings) -> list[str]:
    """What the official code has no class for; this project reads it back from the ``config`` stored in the file."""
    vision, text = settings.vision, settings.text
    found = [f"vision.{name}={str(getattr(vision, name)).lower()}" for name in _OF_CLIP if getattr(vision, name) != _OF_CLIP[name]]
    lines = []
    if found:
        lines.append(f"The official image encoder has no {' '.join(found)}: its code would compute something else with this file.")
    if isinstance(settings, FinetuningConfig) and vision.width != text.width:
        lines.append(
            f"The official answer decoder expects states as wide as the image ({vision.width}), this one reads the question's "
            f"({text.width}): the official code takes it with encoder_width={text.width} in the decoder's configuration."
        )
    return lines


_OF_CLIP = {"pre_norm": False, "activation": "gelu", "layer_norm_eps": 1e-6}


# --- checkpoints of ours


def _read_parts(folder: Path) -> dict[str, State]:
    names = ("teacher", "queue", "official")
    return {name: read_tensors(folder / f"{name}.safetensors") for name in names if (folder / f"{name}.safetensors").exists()}


def _write_parts(weights: Weights, folder: Path) -> None:
    for name, state in (("teacher", weights.teacher), ("queue", weights.queue), ("official", weights.official)):
        if state:
            write_tensors(folder / f"{name}.safetensors", state)


def _read_checkpoint(folder: Path) -> Weights:
    try:
        stored = read_object(folder / "config.json", "checkpoint's settings")
        kind = {"PretrainingConfig": PretrainingConfig, "FinetuningConfig": FinetuningConfig}[stored.pop("stage")]
    except (ValueError, KeyError, TypeError) as e:
        raise M2I2Error(f"{folder / 'config.json'} cannot be read ({type(e).__name__}: {e}); name another checkpoint.") from e
    student = read_tensors(folder / "model.safetensors")
    return Weights(from_dict(kind, stored), student, **_read_parts(folder), tokenizer=load_tokenizer(folder / "tokenizer"))


def _write_checkpoint(weights: Weights, folder: Path, tokenizer: Tokenizer) -> None:
    write_tensors(folder / "model.safetensors", weights.student)
    _write_parts(weights, folder)
    write_json(folder / "config.json", {"stage": type(weights.settings).__name__, **to_dict(weights.settings)})
    tokenizer.save(folder / "tokenizer")
    seal(folder)


# --- Hugging Face folders


def _read_hugging_face(folder: Path) -> Weights:
    try:
        config = M2I2Config.from_dict(read_object(folder / "config.json", "model's configuration"))
        answers = "M2I2ForVisualQuestionAnswering" in (config.architectures or [])
        vision, text, objectives = config.sections
    except (ValueError, TypeError) as e:
        raise M2I2Error(f"{folder} is not a model folder of M2I2 ({e}).") from e
    stored = folder / "settings.json"
    pretraining, finetuning = preset("official")
    settings: Settings
    if stored.exists():
        values = read_object(stored, "model's settings")
        settings = from_dict(FinetuningConfig, values) if answers else from_dict(PretrainingConfig, values)
        settings = replace(settings, vision=vision, text=text)
    elif answers:
        answering = {**to_dict(finetuning.answering), "normalisation": config.normalisation}
        settings = replace(finetuning, vision=vision, text=text, answering=from_dict(AnsweringConfig, answering))
    else:
        settings = replace(pretraining, vision=vision, text=text, objectives=objectives)
    return Weights(settings, read_state(folder), **_read_parts(folder), tokenizer=load_tokenizer(folder))


def _write_hugging_face(weights: Weights, folder: Path, tokenizer: Tokenizer, results: dict[str, Any] | None) -> None:
    from transformers import BertTokenizer

    from m2i2.hub.modeling import M2I2ForPretraining, M2I2ForVisualQuestionAnswering
    from m2i2.hub.processing import M2I2Processor

    settings = weights.settings
    vision, text = settings.vision, settings.text
    normalisation = settings.answering.form if isinstance(settings, FinetuningConfig) else "official"
    objectives = settings.objectives if isinstance(settings, PretrainingConfig) else None
    config = M2I2Config.of(vision, text, objectives, normalisation)
    kind: Any = M2I2ForVisualQuestionAnswering if weights.answers else M2I2ForPretraining
    model = kind(config).to(weights.student["visual_encoder.cls_token"].dtype)
    model.load_state_dict(weights.student)
    tokenizer.save(folder)
    model.processor = M2I2Processor(
        BertTokenizer.from_pretrained(folder), vision.image_size, max_tokens=text.positions, normalisation=normalisation
    )
    model.save_pretrained(folder, results=results)
    _write_parts(weights, folder)
    write_json(folder / "settings.json", to_dict(settings))


# --- all of them


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, type and bits (-0 and NaN too)."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8))


def write(weights: Weights, path: Path, to: Format, results: dict[str, Any] | None = None) -> None:
    """Write a model to ``path``, which must not exist, read it back, and compare every tensor.

    M2I2Error, and nothing left at ``path``, where it cannot be written or does not come back as it was.
    """
    if path.exists():
        raise M2I2Error(f"{path} is there already; name a new --output.")
    if to != "official" and weights.tokenizer is None:
        raise M2I2Error(
            "An official file holds no tokenizer, and the other formats need one: name it with --tokenizer "
            "(bert-base-uncased for the published models)."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if to == "official":
        _write_official(weights, path)
        _compare(official_state(weights), read_state(path), path)
        return
    assert weights.tokenizer is not None
    temporary = unfinished(path)
    temporary.mkdir()
    try:
        if to == "checkpoint":
            _write_checkpoint(weights, temporary, weights.tokenizer)
        else:
            _write_hugging_face(weights, temporary, weights.tokenizer, results)
        _compare(weights.tensors(), read(temporary).tensors(), path)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _compare(meant: State, found: State, path: Path) -> None:
    wrong = [name for name in {**meant, **found} if name not in meant or name not in found or not same(meant[name], found[name])]
    if wrong:
        if path.is_file():
            path.unlink()
        raise M2I2Error(f"{path} did not come back as it was written, in {len(wrong)} tensors: {listed(wrong)}. Nothing is kept.")
