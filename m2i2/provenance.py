"""What a result came from: versions, commit, command; stored beside every run."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import m2i2


def versions() -> dict[str, str]:
    """Versions of everything that decides a number."""
    found = {"m2i2": m2i2.__version__, "python": platform.python_version()}
    for name in (
        "torch",
        "torchvision",
        "deepspeed",
        "transformers",
        "timm",
        "numpy",
        "webdataset",
        "tokenizers",
        "pillow",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state() -> str:
    """Commit of the checkout that runs, with ``+changes`` where files differ from it; empty outside a checkout.

    docs/results does not count: an ablation's records change nothing of what its next cell runs.
    """
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".", ":!docs/results") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def provenance() -> dict[str, object]:
    """Everything above, with this process's command line, ready for JSON."""
    return {"versions": versions(), "git": git_state(), "command": [sys.executable, *sys.argv]}
