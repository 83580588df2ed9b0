"""The samples that training could not read: listed, counted, bounded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from m2i2.errors import M2I2Error
from m2i2.training.lines import StepLines
from m2i2.training.processes import Process


class UnreadableSamples:
    """The samples that training could not read: listed in ``unreadable.jsonl`` of the run, counted, bounded."""

    def __init__(self, folder: Path, share: float, corpus_items: int, process: Process, done_steps: int) -> None:
        """The run has done ``done_steps`` steps; what it found unreadable in them counts."""
        self.path, self.share, self.corpus_items, self.process = folder / "unreadable.jsonl", share, corpus_items, process
        self._lines = StepLines(self.path, done_steps) if process.first else None
        shared: list[Any] = [sorted({int(row["item"]) for row in self._lines.rows()}) if self._lines else None]
        dist.broadcast_object_list(shared, src=0)
        self.items: set[int] = set(shared[0])

    def add(self, step: int, mine: Sequence[tuple[int, str]]) -> None:
        """Add what the ranks found in ``step``. Collective; M2I2Error when more than the allowed share is unreadable."""
        everyones: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyones, list(mine))
        found = [entry for entries in everyones for entry in entries]
        fresh = [(item, reason) for item, reason in found if item not in self.items]
        self.items.update(item for item, _ in found)
        if self._lines:
            self._lines.add(*({"step": step, "item": item, "reason": reason} for item, reason in found))
        for _, reason in fresh[:3]:
            self.process.say(f"Unreadable, replaced by another sample ({len(self.items)} so far, see {self.path}): {reason}")
        if len(self.items) > self.share * self.corpus_items:
            raise M2I2Error(
                f"{len(self.items)} of {self.corpus_items} samples cannot be read, more than data.max_unreadable={self.share:g}; "
                f"{self.path} lists them. The last: {found[-1][1]} Repair the shards, or raise data.max_unreadable."
            )
