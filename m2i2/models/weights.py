"""Weights in and out: state dictionaries of BERT, ViT, MAE and the official code, renamed, resized and accounted for.

Everything here works on plain ``{name: tensor}`` dictionaries; `load` puts one into a model and insists that every key on
both sides is accounted for.
"""

import mmap
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2i2.errors import M2I2Error
from m2i2.files import check_file, read_object
from m2i2.models.bounds import check_archive, check_old, check_safetensors, indexed_parts

State = dict[str, Tensor]

_MOST_SHARED = 4
"""How often the numbers of a file may be used; the official files tie two copies of a table each."""
_FILES = (
    *("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)


# --- reading


def read_checkpoint(path: Path) -> Any:
    """A ``.pth``/``.bin`` file without ever running code from it; M2I2Error where it is damaged or asks for code."""
    try:
        check_file(path)
        if not zipfile.is_zipfile(path):  # from before PyTorch 1.6; a mapped file allocates no more bytes than it has
            with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                check_old(cast(Any, mapped))
                return torch.load(cast(Any, mapped), map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path.stat().st_size)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged file raises almost anything
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise M2I2Error(
            f"Cannot read {path} as weights only: {reason}. Either the file is damaged, or it holds Python objects, which are "
            f"refused because loading them would run code; save its state dictionary alone with torch.save or safetensors."
        ) from e


def tensors_of(path: Path) -> State:
    """The tensors of a safetensors file. Its reader takes no path that is not UTF-8: there the file is read whole."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return safetensors.torch.load(path.read_bytes())
    return safetensors.torch.load_file(path)


def read_state(source: str | Path) -> State:
    """Tensors of a file, of a folder in the hub's format, or of a name on the Hugging Face hub."""
    return read_described(source)[0]


def read_described(source: str | Path) -> tuple[State, dict[str, Any]]:
    """The same, and what is stored beside the tensors about the model: config.json of a folder, ``config`` of a .pth; else {}."""
    path = Path(source)
    if not path.exists():
        path = _from_hub(str(source))
    described: dict[str, Any] = {}
    if path.is_dir():
        if (path / "config.json").exists():
            described = read_object(path / "config.json", "description of the model")
        found = [path / name for name in _FILES if (path / name).exists()]
        if not found:
            raise M2I2Error(f"{path} holds none of {', '.join(_FILES)}; name a folder in the Hugging Face hub's format.")
        path = found[0]
    try:
        check_file(path)
        if path.name.endswith(".index.json"):
            parts = indexed_parts(path)
            for part in parts:
                check_safetensors(part)
            return {k: v for part in parts for k, v in tensors_of(part).items()}, described
        if path.suffix == ".safetensors":
            check_safetensors(path)
            return tensors_of(path), described
    except M2I2Error:
        raise
    except Exception as e:  # safetensors and PyTorch raise almost anything on damaged headers
        raise M2I2Error(f"Cannot read the weights {path}: {e}. Download the file again.") from e
    state = read_checkpoint(path)
    if isinstance(state, Mapping) and isinstance(state.get("config"), Mapping):
        described = {**described, **{str(key): value for key, value in state["config"].items()}}
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()) or not state:
        raise M2I2Error(f"{path} is not a state dictionary of tensors.")
    size, claimed = path.stat().st_size, 0
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
            raise M2I2Error(f"{path} was refused: {key!s:.80} is not a plain tensor. Save the state dictionary again.")
        if tensor.nbytes > size:  # a view of a few bytes may claim any shape, which copies of it would fill
            raise M2I2Error(f"{path} was refused: {key!s:.80} claims {tensor.nbytes} bytes, the file has {size}.")
        claimed += tensor.nbytes
    if claimed > _MOST_SHARED * size:
        raise M2I2Error(f"{path} was refused: its tensors claim {claimed} bytes in all, the file has {size}.")
    return {str(k): v for k, v in state.items()}, described


def _from_hub(name: str) -> Path:
    if name.startswith((".", "/")) or name.count("/") > 1 or name.endswith((".pth", ".bin", ".safetensors")):
        raise M2I2Error(f"There is no file or folder {name}.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.index.json", "*.bin", "*.json", "*.txt"]))
    except Exception as e:
        raise M2I2Error(
            f"{name!r} is not a local folder and could not be downloaded from the Hugging Face hub ({type(e).__name__}: "
            f"{str(e).splitlines()[0] if str(e) else 'no reason given'}). Without a connection, download it elsewhere "
            f"(hf download {name} --local-dir weights/{name.split('/')[-1]}) and name that folder."
        ) from e


# --- loading with every key accounted for


@dataclass
class LoadReport:
    """What became of every key."""

    loaded: list[str] = field(default_factory=list)
    fresh: dict[str, str] = field(default_factory=dict)
    """Parameters of the model that stay as initialised, with the reason."""
    left_over: dict[str, str] = field(default_factory=dict)
    """Keys of the file that the model has no use for, with the reason."""

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for label, group in (("fresh", self.fresh), ("not used", self.left_over)):
            for reason in sorted(set(group.values())):
                parts.append(f"{sum(r == reason for r in group.values())} {label} ({reason})")
        return ", ".join(parts)


def load(
    model: nn.Module,
    state: State,
    what: str,
    fresh: Mapping[str, str] | None = None,
    unused: Mapping[str, str] | None = None,
) -> LoadReport:
    """Copy ``state`` (read from ``what``) into ``model``.

    ``fresh`` and ``unused`` map regular expressions to reasons: the model's keys that may be missing in the file, and the
    file's keys that the model need not have. Anything else missing, unknown or of another shape is an M2I2Error.
    """
    own, report, problems = model.state_dict(), LoadReport(), []

    def allowed(key: str, rules: Mapping[str, str] | None) -> str | None:
        return next((reason for rule, reason in (rules or {}).items() if re.fullmatch(rule, key)), None)

    for key, tensor in own.items():
        if key in state and state[key].numel() == tensor.numel() == 1:
            report.loaded.append(key)  # the temperature: () in official files, (1,) here
        elif key in state and state[key].shape == tensor.shape:
            report.loaded.append(key)
        elif key in state:
            problems.append(f"{key} is {tuple(state[key].shape)} there, {tuple(tensor.shape)} in the model")
        elif reason := allowed(key, fresh):
            report.fresh[key] = reason
        else:
            problems.append(f"{key} is missing there")
    for key in state:
        if key not in own:
            if reason := allowed(key, unused):
                report.left_over[key] = reason
            else:
                problems.append(f"{key} is unknown to the model")
    if problems:
        raise M2I2Error(
            f"{what} does not fit the model in {len(problems)} keys: {listed(problems)}. "
            f"Choose the preset or the vision.*/text.* settings that it was trained with."
        )
    with torch.no_grad():
        for key in report.loaded:
            own[key].copy_(state[key].reshape(own[key].shape))
    return report


def listed(problems: Iterable[str], most: int = 12) -> str:
    """At most ``most`` problems in a line, and how many more there are."""
    rows = list(problems)
    return "; ".join(rows[:most]) + (f"; and {len(rows) - most} more" if len(rows) > most else "")


# --- resizing


def resize_positions(positions: Tensor, patches: int) -> Tensor:
    """Position embeddings [1, 1 + P, D] on the square grid of ``patches``, interpolated bicubically ([CLS] kept)."""
    old, new = round((positions.shape[1] - 1) ** 0.5), round(patches**0.5)
    if old == new:
        return positions
    if old * old != positions.shape[1] - 1:
        raise M2I2Error(f"Position embeddings {tuple(positions.shape)} are not a square grid with [CLS].")
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


# --- official checkpoints


def of_teacher(state: Mapping[str, Tensor]) -> State:
    """The teacher's tensors of an official state (``visual_encoder_m.``, ``text_proj_m.`` ...) under the student's names."""
    found = {}
    for key, tensor in state.items():
        head, dot, tail = key.partition(".")
        if head.endswith("_m"):
            found[head.removesuffix("_m") + dot + tail] = tensor
    return found


def of_student(state: Mapping[str, Tensor]) -> State:
    """The student's tensors of an official state, without teacher, queue and the copies that PyTorch ties."""
    skip = ("image_queue", "text_queue", "queue_ptr")
    return {
        key: tensor
        for key, tensor in state.items()
        if not key.partition(".")[0].endswith("_m") and key not in skip and not _is_tied_copy(key)
    }


def _is_tied_copy(key: str) -> bool:
    return key.endswith(("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "embeddings.position_ids"))


# --- from pretraining to answering


def to_answering(state: Mapping[str, Tensor], fusion_layer: int, patches: int) -> State:
    """The official key surgery: a pretraining student's (or teacher's) state as that of a `VQAModel`.

    The question encoder is the text encoder without its head; the answer decoder starts as the multimodal layers (layer
    ``fusion_layer`` becomes 0, and so on), with copies of the embeddings and of the vocabulary head. The pixel decoder,
    projections, matching head and temperature are left behind; positions are resized to ``patches``.

    Where the image is not as wide as the text, the keys and values of the decoder's cross-attention are left out: those of the
    multimodal layers read states of the image's width, the decoder reads states of the text's.
    """
    answering: State = {}
    for key, tensor in state.items():
        if key == "visual_encoder.pos_embed":
            answering[key] = resize_positions(tensor, patches)
        elif key.startswith("visual_encoder."):
            if not re.match(r"visual_encoder\.(decoder_|mask_token)", key):
                answering[key] = tensor
        elif key.startswith("text_encoder.bert."):
            answering[key.replace("text_encoder.bert.", "text_encoder.")] = tensor
            layer = re.match(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.", key)
            if layer is None:
                answering[key.replace("text_encoder.", "text_decoder.", 1)] = tensor
            elif (number := int(layer[1]) - fusion_layer) >= 0 and not _reads_another_width(state, key):
                name = key.replace(f".layer.{layer[1]}.", f".layer.{number}.")
                answering[name.replace("text_encoder.", "text_decoder.", 1)] = tensor
        elif key.startswith("text_encoder.cls."):
            answering[key.replace("text_encoder.", "text_decoder.", 1)] = tensor
    return answering


def _reads_another_width(state: Mapping[str, Tensor], key: str) -> bool:
    """Whether ``key`` is of a cross-attention's keys or values that are projected from states of another width than the text's."""
    projection = re.match(r".*\.crossattention\.self\.(key|value)\.", key)
    if projection is None:
        return False
    weight = state.get(f"{projection[0]}weight")
    return weight is not None and weight.dim() == 2 and weight.shape[0] != weight.shape[1]
