"""What a machine has for this program and what it lacks: one finding a subject, with the reason and the remedy.

Everything heavy is imported inside its check, so that the examination runs, and says what is missing, where nothing is
installed.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "note", "fault"]
"""``note``: it works, but something is missing that some uses need; ``fault``: training cannot run."""

GIB = 1 << 30
INSTALL = "make setup, then source .venv/bin/activate (or pip install -c constraints.txt -e . in the checkout)."
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Finding:
    """What was found about one subject."""

    subject: str
    status: Status
    found: str
    remedy: str = ""
    """What to do; empty where there is nothing to do."""


def examine(folder: Path) -> Iterator[Finding]:
    """All findings; ``folder`` is where runs will be written. An examination that fails is a finding itself."""
    for subject, check in _CHECKS.items():
        try:
            yield from (Finding(subject, *rest) for rest in check(folder))
        except Exception as e:  # a broken installation raises almost anything when it is imported
            remedy = INSTALL if isinstance(e, ModuleNotFoundError) else "Repair or reinstall it."
            yield Finding(subject, "fault", f"{type(e).__name__}: {e}".splitlines()[0], remedy)


_Row = tuple[Status, str, str]


def _python(folder: Path) -> Iterator[_Row]:
    found = f"{platform.python_version()} in {sys.prefix}"
    if sys.prefix == sys.base_prefix:
        yield "note", f"{found}, not a virtual environment", "make setup, then source .venv/bin/activate, keeps versions apart."
    else:
        yield "ok", found, ""


def _packages(folder: Path) -> Iterator[_Row]:
    """What setup.py requires, and, in a checkout, the versions of constraints.txt."""
    if _version("m2i2") is None:
        yield "fault", f"m2i2 is not installed in this Python; this is its checkout in {_ROOT}", INSTALL
        return
    from packaging.requirements import Requirement

    missing, old = [], []
    for line in importlib.metadata.requires("m2i2") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = _version(wanted.name)
        if version is None:
            missing.append(wanted.name)
        elif not wanted.specifier.contains(version, prereleases=True):
            old.append(f"{wanted.name} {version}, {wanted.specifier} is required")
    if missing or old:
        found = "; ".join([*(f"{name} is not installed" for name in missing), *old])
        yield "fault", found, INSTALL
    else:
        yield "ok", "everything that is required is installed", ""
    constraints = _ROOT / "constraints.txt"
    if not constraints.exists():
        return
    pins = [Requirement(line) for line in constraints.read_text().splitlines() if line.strip() and not line.startswith("#")]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    differs = [
        f"{pin.name} {version} ({str(pin.specifier).removeprefix('==')})"
        for pin in pins
        if (version := _version(pin.name)) is not None and not pin.specifier.contains(version, prereleases=True)
    ]
    if differs:
        found = f"other than the versions that were tested together: {', '.join(differs)}"
        yield "note", found, "pip install -c constraints.txt -e . installs the tested ones."
    else:
        yield "ok", "the versions that were tested together (constraints.txt)", ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch(folder: Path) -> Iterator[_Row]:
    import torch

    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield "ok", f"{torch.__version__}, {built}", ""


def _accelerator(folder: Path) -> Iterator[_Row]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            yield (
                "ok",
                f"GPU {number}: {about.name}, {about.total_memory / GIB:.0f} GiB, capability {about.major}.{about.minor}",
                "",
            )
    elif shutil.which("nvidia-smi"):
        why = (
            "its driver is too old for this torch, or CUDA_VISIBLE_DEVICES hides it" if torch.version.cuda else "torch has no CUDA"
        )
        yield "note", f"there is an NVIDIA driver, but torch sees no GPU: {why}", "Compare nvidia-smi with torch.version.cuda."
    else:
        yield "ok", "none; training runs on the CPU (presets tiny and small are made for that)", ""


def _bfloat16(folder: Path) -> Iterator[_Row]:
    import torch

    from m2i2.precision import autocast_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if autocast_dtype("auto", device) == torch.bfloat16:
        yield "ok", f"training.precision=auto computes matrix products in bfloat16 on this {device.type}", ""
    else:
        yield "ok", f"this {device.type} has no bfloat16 arithmetic: training.precision=auto means float32", ""


def _collectives(folder: Path) -> Iterator[_Row]:
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        yield "fault", "torch was built without gloo", "Install a build of torch with distributed support."
    elif torch.cuda.is_available() and not dist.is_nccl_available():
        yield "fault", "torch sees GPUs but was built without NCCL", "Install the CUDA build of torch."
    elif torch.cuda.is_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))
        yield "ok", f"NCCL {version} between GPUs, gloo for the rest", ""
    else:
        yield "ok", "gloo", ""


def _deepspeed(folder: Path) -> Iterator[_Row]:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    yield "ok", str(deepspeed.__version__), ""
    if not shutil.which("deepspeed"):
        yield "note", "the command deepspeed is not on the PATH", "source .venv/bin/activate, or start with torchrun."


def _apex(folder: Path) -> Iterator[_Row]:
    """NVIDIA's apex is optional; PyPI's package of that name is another program."""
    if importlib.util.find_spec("apex") is None:
        yield "ok", "not installed; torch's own fused kernels are used", ""
        return
    import torch

    remedy = "Nothing is lost but speed on GPUs. For it: build NVIDIA's from its repository with its CUDA extensions."
    if "pyramid" in str(importlib.metadata.metadata("apex")).lower():
        found = "the installed apex is PyPI's, a web toolkit, not NVIDIA's; it is ignored"
        yield "note", found, f"pip uninstall apex. {remedy}"
        return
    lacking = [
        name
        for name in ("apex.optimizers", "apex.normalization", "amp_C", "fused_layer_norm_cuda")
        if importlib.util.find_spec(name) is None
    ]
    if lacking or not torch.cuda.is_available():
        why = f"without {', '.join(lacking)} (a Python-only build)" if lacking else "but torch sees no GPU"
        yield "note", f"NVIDIA's apex is installed, {why}; it is ignored", remedy
    else:
        yield "ok", "NVIDIA's, with its CUDA extensions", ""


def _compiler(folder: Path) -> Iterator[_Row]:
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None:
        yield "note", "no C++ compiler", "Training needs none; torch.compile does: sudo apt-get install g++."
    else:
        yield "ok", f"{compiler} (only torch.compile and DeepSpeed's optional operators use it)", ""


def _shared_memory(folder: Path) -> Iterator[_Row]:
    """Loader workers hand their batches over in /dev/shm; in containers it often holds 64 MiB."""
    if not Path("/dev/shm").is_dir():
        yield "note", "there is no /dev/shm", "Set data.workers=0, or mount one (docker run --shm-size=8g)."
        return
    total, _, free = shutil.disk_usage("/dev/shm")
    found = f"/dev/shm has {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < GIB:
        yield "note", f"{found}; loader workers may die with a bus error", "docker run --shm-size=8g, or data.workers=0."
    else:
        yield "ok", found, ""
    if left := _left_by_killed_processes():
        size = sum(left.values()) / 1e6
        yield (
            "note",
            f"/dev/shm has {len(left)} file(s), {size:,.0f} MB, of processes that have ended, such as {next(iter(left))}",
            "Remove them, unless another container shares this /dev/shm: its processes cannot be seen from here.",
        )


def _left_by_killed_processes() -> dict[str, int]:
    """Names and bytes of this user's torch files in /dev/shm (torch_PID_...) whose process does not run."""
    left = {}
    for path in Path("/dev/shm").glob("torch_*"):
        pid = path.name.split("_")[1]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            with suppress(FileNotFoundError):  # its process removed it, and ended, in this moment
                if (status := path.stat()).st_uid == os.getuid():
                    left[path.name] = status.st_size
    return left


def _disk(folder: Path) -> Iterator[_Row]:
    from m2i2.presets import pretraining_preset

    free = shutil.disk_usage(folder).free
    keep = pretraining_preset("paper").training.keep
    size = _checkpoint_bytes()
    found = f"{free / GIB:.0f} GiB free in {folder}; a run of the preset paper keeps {keep} checkpoints of {size / GIB:.1f} GiB"
    if free < (keep + 1) * size:
        yield "note", found, "Make room, write to another --output, or lower training.keep."
    else:
        yield "ok", found, ""


def _checkpoint_bytes() -> int:
    """The size of a pretraining checkpoint of the preset paper, from its tensors; their values are never made."""
    import torch

    from m2i2.models.pretraining import Encoders, PretrainingModel
    from m2i2.presets import pretraining_preset

    config = pretraining_preset("paper")
    with torch.device("meta"):
        student = PretrainingModel(config.vision, config.text, config.objectives)
        teacher = Encoders(config.vision, config.text, config.objectives, with_decoder=False)
    own, theirs = (sum(t.numel() for t in module.state_dict().values()) for module in (student, teacher))
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    return 4 * (own + theirs + 2 * trained + 2 * config.objectives.queue * config.objectives.projection)


def _processor(folder: Path) -> Iterator[_Row]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = _quota()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    found = f"{usable} core(s) usable of {os.cpu_count()}, {memory:.0f} GiB of memory"
    if allowed is not None and allowed < usable:
        remedy = f"Set M2I2_THREADS to {max(1, int(allowed))} divided by the ranks of a node."
        yield "note", f"{found}, but a container's limit of {allowed:g} core(s)", remedy
    elif usable < (os.cpu_count() or 1):
        yield "note", f"{found}: this process is bound to a part of them", "Ask for more, e.g. --cpus-per-task of SLURM."
    else:
        yield "ok", found, ""
    for name in ("M2I2_THREADS", "OMP_NUM_THREADS"):
        if value := os.environ.get(name):
            meaning = "threads per rank, not its share of the cores" if name == "M2I2_THREADS" else "ignored by training ranks"
            yield "ok", f"{name}={value} is set: {meaning}", ""


def _quota() -> float | None:
    """Cores that the control group may use at a time (versions 2 and 1); None without a limit."""
    base = Path("/sys/fs/cgroup")
    try:
        if (base / "cpu.max").exists():
            limit, period = (base / "cpu.max").read_text().split()
        else:
            limit, period = ((base / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(limit) / float(period) if limit not in ("max", "-1") else None
    except (OSError, ValueError):
        return None


def _slurm(folder: Path) -> Iterator[_Row]:
    tools = [name for name in ("sbatch", "srun", "squeue", "scontrol", "sacct") if shutil.which(name)]
    if "sbatch" not in tools:
        yield "ok", "no SLURM on this machine (only launchers for clusters need it)", ""
        return
    if _version("submitit") is None:
        yield "note", "SLURM is here, but submitit is not installed", "pip install '.[slurm]'."
    try:
        done = subprocess.run(["sacct", "-n", "-X"], capture_output=True, text=True, timeout=20)
        working = done.returncode == 0
        why = done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as e:
        working, why = False, type(e).__name__
    if working:
        yield "ok", f"{', '.join(tools)}; accounting answers", ""
    else:
        yield (
            "note",
            f"sbatch is here, but sacct does not answer ({why})",
            "Without accounting a job's state stays unknown; ask the cluster's administrators.",
        )


def _extras(folder: Path) -> Iterator[_Row]:
    uses = {
        "tensorboard": ("tensorboard", "curves in TensorBoard"),
        "wandb": ("wandb", "runs in Weights & Biases"),
        "pyarrow": ("parquet", "data sets in parquet files"),
        "pydicom": ("dicom", "DICOM images"),
        "matplotlib": ("plots", "tools/plot_losses.py"),
    }
    have = [name for name in uses if _version(name)]
    lack = {name: use for name, use in uses.items() if name not in have}
    if have:
        yield "ok", f"optional: {', '.join(f'{name} {_version(name)}' for name in have)}", ""
    if lack:
        what = ", ".join(f"{name} (for {use})" for name, (_, use) in lack.items())
        yield (
            "note",
            f"not installed: {what}",
            f"pip install '.[{','.join(extra for extra, _ in lack.values())}]' where you want them.",
        )


_CHECKS: dict[str, Callable[[Path], Iterator[_Row]]] = {
    "python": _python,
    "packages": _packages,
    "torch": _torch,
    "accelerator": _accelerator,
    "bfloat16": _bfloat16,
    "collectives": _collectives,
    "deepspeed": _deepspeed,
    "apex": _apex,
    "compiler": _compiler,
    "shared memory": _shared_memory,
    "disk": _disk,
    "processor": _processor,
    "slurm": _slurm,
    "extras": _extras,
}
