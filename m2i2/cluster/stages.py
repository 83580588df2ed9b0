"""The stages that a job can run, by the module of their command line: found by name when it is needed, as an entry point is."""

import importlib
from typing import Any

STAGES = {name: f"m2i2.cli.{name}" for name in ("pretrain", "finetune", "evaluate")}


def command_line(stage: str) -> Any:
    """The module of a stage: ``parse(words)`` reads its words, ``run(words)`` does its work and returns the exit code."""
    return importlib.import_module(STAGES[stage])
