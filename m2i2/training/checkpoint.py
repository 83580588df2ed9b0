"""Checkpoints that are complete or do not exist, free of the number of ranks.

A checkpoint is a folder ``step-00000200`` of safetensors files under the parameters' own names, written by rank 0 under
a temporary name, sealed by a manifest of sizes and hashes, and given its name by one rename. Resuming takes the newest
sealed one; the file ``latest`` names it for people and scripts.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from m2i2.config import completed
from m2i2.errors import M2I2Error, shown
from m2i2.files import MOST_JSON, parse_json, read_bytes, read_object, sha256_of, write_json, write_text
from m2i2.models.bounds import check_safetensors
from m2i2.models.weights import tensors_of
from m2i2.options import from_dict

C = TypeVar("C")

MANIFEST = "manifest.json"
SELECTION = "selection.json"
"""What the selection scored at which step, and which step is the best; see evaluation/selection.py."""
AGREED = "replayed.json"
"""The last step whose replay by another rank agreed (``training.replay_every``): checkpoints up to it are trusted."""
FORMAT = 1


def _sync(path: Path) -> None:
    """Make sure that a file or folder has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; M2I2Error where it is missing or damaged."""
    try:
        check_safetensors(path)
        return tensors_of(path)
    except Exception as e:  # safetensors and PyTorch raise almost anything on damaged headers
        raise M2I2Error(f"Cannot read {path}: {e}. Resume from another checkpoint.") from e


def seal(folder: Path, digests: Mapping[str, str] | None = None) -> None:
    """Write the manifest: every file's size and sha256. A folder without a valid one is not a checkpoint.

    ``digests``: the sha256 of files that were hashed as they were written, by name; the others are read again.
    """
    known, rows = digests or {}, dict[str, dict[str, object]]()
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    for path in files:
        name = str(path.relative_to(folder))
        rows[name] = {"bytes": path.stat().st_size, "sha256": known.get(name) or sha256_of(path)}
    for path in (*files, *(p for p in folder.rglob("*") if p.is_dir())):
        _sync(path)
    write_json(folder / MANIFEST, {"format": FORMAT, "files": rows})
    _sync(folder / MANIFEST)
    _sync(folder)


_sound: dict[Path, object] = {}
"""Complete checkpoints that this process has hashed already, and what their files looked like then."""


def _look(folder: Path) -> object:
    """What changes when a file of a folder does: names, sizes, times and places on the disk."""
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        found.append((str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    return found


def flaw(folder: Path) -> str:
    """Why a folder is not a complete checkpoint; empty for one that is. A process hashes an unchanged checkpoint once."""
    key = folder.resolve()
    try:
        if key in _sound and _sound[key] == _look(folder):
            return ""
        look = _look(folder)
    except OSError:
        look = None
    reason = _flaw(folder)
    if not reason and look is not None:
        _sound[key] = look
    return reason


def _flaw(folder: Path) -> str:
    try:
        manifest = parse_json(read_bytes(folder / MANIFEST, MOST_JSON))
        if manifest["format"] != FORMAT:
            return f"its format is {shown(manifest['format'])}, this version reads {FORMAT}"
        rows = [(name, row["bytes"], row["sha256"]) for name, row in manifest["files"].items()]
    except FileNotFoundError:
        return f"it has no {MANIFEST}: the save did not finish"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        return f"its {MANIFEST} is damaged ({type(e).__name__}: {e})"
    for name, size, digest in rows:
        if reason := _file_flaw(folder, name, size, digest):
            return reason
    return ""


def _file_flaw(folder: Path, name: str, size: Any, digest: Any) -> str:
    """Why a file of a checkpoint is not the one in its manifest; empty for one that is."""
    if Path(name).is_absolute() or ".." in Path(name).parts or not name.isprintable():
        return f"its {MANIFEST} names a file outside it: {name!r:.80}"
    try:
        if not (folder / name).is_file():
            return f"{name:.80} is missing"
        if (found := (folder / name).stat().st_size) != size:
            return f"{name} has {found} bytes, not {shown(size)}"
        if sha256_of(folder / name) != digest:
            return f"{name} does not match its hash"
    except OSError as e:
        return f"{name:.80} cannot be read ({e.strerror})"
    return ""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run, in ``folder``."""

    folder: Path
    keep: int = 3
    keep_every: int = 0
    """Checkpoints of every so many steps are kept for good; 0: none."""

    @staticmethod
    def name(step: int) -> str:
        """Folder name of the checkpoint after ``step`` optimizer steps."""
        return f"step-{step:08d}"

    @staticmethod
    def step(path: Path) -> int:
        """The step of a checkpoint's folder."""
        return int(path.name.removeprefix("step-"))

    def all(self) -> list[Path]:
        """Checkpoint folders by name, newest first, complete or not."""
        return sorted((p for p in self.folder.glob("step-" + "[0-9]" * 8) if p.is_dir()), reverse=True)

    def _chosen(self) -> Path | None:
        """The checkpoint that the run's selection chose, complete or not; None where nothing was chosen."""
        try:
            return self.folder / self.name(int(parse_json(read_bytes(self.folder / SELECTION, MOST_JSON))["best"]["step"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def best(self) -> Path | None:
        """The complete checkpoint that the run's selection chose; None where nothing was chosen."""
        path = self._chosen()
        return None if path is None or flaw(path) else path

    def _outdated(self) -> list[Path]:
        """Checkpoints that are neither among the last ``keep``, nor kept for good, nor the best, nor the newest trusted one."""
        agreed = self.agreed()
        spared = (self._chosen(), next((path for path in self.all() if self.step(path) <= agreed), None))
        old = [path for path in self.all()[self.keep :] if path not in spared]
        return [p for p in old if not self.keep_every or self.step(p) % self.keep_every]

    def agreed(self) -> int:
        """The last step whose replay agreed; -1 where there was none."""
        try:
            return int(parse_json(read_bytes(self.folder / AGREED, MOST_JSON))["step"])
        except (OSError, ValueError, TypeError, KeyError):
            return -1

    def note_agreed(self, step: int) -> None:
        """The replay after ``step`` agreed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / AGREED, {"step": step})

    def suspect(self) -> list[Path]:
        """Set aside the checkpoints since the last replay that agreed; returns what they are called now."""
        agreed = self.agreed()
        aside = [self.set_aside(path.name, "suspect") for path in self.all() if self.step(path) > agreed]
        if left := self.all():
            write_text(self.folder / "latest", left[0].name + "\n")
        else:
            (self.folder / "latest").unlink(missing_ok=True)
        return aside

    def _clear_unfinished(self) -> None:
        """Remove what killed saves have left."""
        for path in self.folder.glob(".writing-*"):
            shutil.rmtree(path, ignore_errors=True)

    def newest(self) -> tuple[Path | None, dict[str, str]]:
        """The newest complete checkpoint, and the names of the newer ones that were passed over, each with the reason."""
        passed_over: dict[str, str] = {}
        for path in self.all():
            reason = flaw(path)
            if not reason:
                return path, passed_over
            passed_over[path.name] = reason
        return None, passed_over

    def set_aside(self, name: str, why: str = "damaged") -> Path:
        """Rename a checkpoint that was passed over: it stays for people to look at, and no longer counts towards ``keep``."""
        aside = self.folder / f"{name}.{why}"
        if aside.exists():
            shutil.rmtree(aside)
        return (self.folder / name).rename(aside)

    def put(self, step: int, fill: Callable[[Path], Mapping[str, str]]) -> Path:
        """Let ``fill`` write into a folder, seal it, give it its name, and delete what is older than the last ``keep``.

        ``fill`` returns the sha256 of the files that it has hashed. For one process. What goes wrong (OSError or else) is
        raised, and leaves the previous checkpoints usable.
        """
        final = self.folder / self.name(step)
        temporary = self.folder / f".writing-{self.name(step)}"
        try:
            self._clear_unfinished()
            temporary.mkdir(parents=True)
            seal(temporary, fill(temporary))
            if final.exists():
                shutil.rmtree(final)
            os.rename(temporary, final)
            _sync(self.folder)
            write_text(self.folder / "latest", final.name + "\n")
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for old in self._outdated():
            shutil.rmtree(old, ignore_errors=True)  # the new one is complete: an old one that stays is not a failure
        return final


def find_checkpoint(source: str | Path, best: bool = False) -> Path:
    """The checkpoint that ``source`` means: a checkpoint folder or a file itself, or the newest complete one of a run.

    With ``best``, a run's chosen checkpoint comes before its newest.
    """
    path = Path(source)
    if path.is_file():
        return path
    if (path / MANIFEST).exists():
        if reason := flaw(path):
            raise M2I2Error(f"The checkpoint {path} is not complete: {reason}. Name another one, or bring it back from a copy.")
        return path
    if not path.exists():
        raise M2I2Error(f"There is no checkpoint {path}.")
    if best and (chosen := Checkpoints(path / "checkpoints").best()):
        return chosen
    newest, passed_over = Checkpoints(path / "checkpoints").newest()
    if newest is None:
        why = f" ({'; '.join(f'{name}: {reason}' for name, reason in passed_over.items())})" if passed_over else ""
        raise M2I2Error(f"{path} holds no complete checkpoint{why}; {_instead(path)}")
    return newest


STAGES = {"PretrainingConfig": "pretraining", "FinetuningConfig": "finetuning"}
"""What a checkpoint calls its stage, and what people call it."""


def _instead(path: Path) -> str:
    """What to do with a folder that was named as a run and is none."""
    if (path / "config.json").exists():
        return f"it is a Hugging Face folder. Convert it first: python tools/convert.py {path} --to checkpoint --output runs/NAME"
    if (path / "results.json").exists():
        return f"it holds an evaluation. Name the run that was evaluated, such as {path.parent}."
    if (path / "index.json").exists():
        return "it holds shards. Name the folder of a run, or a checkpoint in it."
    if (path / "settings.json").exists():
        return "the run has saved nothing yet. Start it again with the same command, and wait for its first checkpoint."
    return "name a run's folder or a checkpoint in it."


def require_same_shapes(expected: dict[str, Tensor], found: dict[str, Tensor], what: str) -> None:
    """M2I2Error that lists keys and shapes where ``found`` (read from ``what``) does not fit ``expected``."""
    problems = [f"{k} is missing" for k in expected if k not in found]
    problems += [f"{k} is unknown" for k in found if k not in expected]
    problems += [
        f"{k} is {tuple(found[k].shape)}, not {tuple(t.shape)}"
        for k, t in expected.items()
        if k in found and found[k].shape != t.shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise M2I2Error(
            f"{what} does not belong to this model: {'; '.join(problems[:8])}{more}. "
            f"Use the settings that it was trained with (config.json beside it)."
        )


def copy_into(module: torch.nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Copy ``state`` into the module's parameters and buffers in place; everything must fit."""
    own = module.state_dict()
    require_same_shapes(own, state, what)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def read_config(kind: type[C], checkpoint: Path, remedy: str = "") -> C:
    """The settings stored with a checkpoint; M2I2Error where they are another stage's (``remedy`` ends it) or damaged."""
    path = checkpoint / "config.json"
    stored = read_object(path, "checkpoint's settings", " Name another checkpoint.")
    stage = stored.pop("stage", None)
    if stage != kind.__name__:
        found = STAGES.get(str(stage)) or f"something else ({shown(stage)})"
        raise M2I2Error(f"{checkpoint} is a checkpoint of {found}, not of {STAGES[kind.__name__]}.{remedy}")
    return from_dict(kind, completed(stored))


def read_run_state(checkpoint: Path) -> dict[str, Any]:
    """The state of the run stored with a checkpoint; M2I2Error where one of its counts is missing or no count."""
    path = checkpoint / "state.json"
    state = read_object(path, "checkpoint's state", " Resume from another checkpoint.")
    for name in ("step", "optimizer_steps", "skipped_steps"):
        if type(state.get(name)) is not int or not 0 <= state[name] < 1 << 53:
            raise M2I2Error(f"{path} says {name} = {shown(state.get(name))}, which is not a count; resume from another checkpoint.")
    return state
