"""Saving while training goes on: the state is copied in the host's memory, then written, hashed and sealed by a thread.

Collectives stay in the training's thread. One save is in flight at most. A kill at any moment leaves the newest sealed checkpoint.
"""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError

from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.distributed import checksum, same_on_all_ranks, world_size
from m2i2.errors import M2I2Error
from m2i2.files import write_json
from m2i2.options import to_dict
from m2i2.tasks.task import Task
from m2i2.training.checkpoint import Checkpoints
from m2i2.training.engine import Engine
from m2i2.training.processes import Process
from m2i2.training.snapshot import Files, Snapshot
from m2i2.training.tensor_files import write_tensors

RunState = Mapping[str, object]


class Saver:
    """Writes the checkpoints of a run. Every method that is collective says so."""

    def __init__(
        self,
        config: PretrainingConfig | FinetuningConfig,
        task: Task,
        engine: Engine,
        checkpoints: Checkpoints,
        process: Process,
        store_tokenizer: Callable[[Path], None],
    ) -> None:
        """``store_tokenizer`` writes the tokenizer into a checkpoint's folder."""
        self.config, self.task, self.engine = config, task, engine
        self.checkpoints, self.process, self.store_tokenizer = checkpoints, process, store_tokenizer
        self.saved = -1
        """The step of the newest checkpoint that was begun, or that the run has resumed from."""
        self.seconds = 0.0
        """What the last save took on rank 0, from its beginning until it was sealed."""
        self._background = config.training.save_in_background
        self._snapshot, self._began = Snapshot(), time.monotonic()
        self._in_flight = False
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None
        self._there, self._gone = set[str](), set[str]()
        """Checkpoints that were there after the last save, and those of them that something else has removed."""

    def prepare(self) -> None:
        """Take the memory of the copies, beside the first steps."""
        self._there = self._names() if self.process.first else set()
        if self.process.first and self._background:
            self._snapshot.prepare(self._modules())

    def overdue(self) -> bool:
        """Whether ``training.save_minutes`` have passed since the last save began, on rank 0, whose clock counts."""
        minutes = self.config.training.save_minutes
        return self.process.first and minutes > 0 and time.monotonic() - self._began >= 60 * minutes

    @property
    def failed(self) -> bool:
        """Whether the save in flight has failed, as rank 0 knows; `finish` raises why."""
        return self._fault is not None

    def begin(self, step: int, state: RunState) -> None:
        """Begin a checkpoint of the state after ``step``; the one before must be complete first. Collective.

        M2I2Error where the ranks' replicas differ, where the one before has failed, or, in the foreground, where this one does.
        """
        self.finish()
        self._require_same_replicas(step)
        gathered = self.engine.moments()
        self._in_flight, self.saved, self._began = True, step, time.monotonic()
        if self.process.first:
            assert gathered is not None
            files = self._modules()
            moments = {"optimizer": gathered.tensors}
            if self._background:
                files = self._snapshot.take({**files, **(moments if gathered.live else {})})
            files |= moments if "optimizer" not in files else {}
            whole = {**state, "optimizer_steps": gathered.steps}
            self._thread = threading.Thread(target=self._write, args=(step, files, whole), name="save", daemon=True)
            self._thread.start()
        if not self._background:
            self.finish()

    def finish(self) -> None:
        """Wait until the save in flight, if there is one, is complete. Collective; M2I2Error where it failed, on every rank."""
        if not self._in_flight:
            return
        if self._thread:
            self._thread.join()
        self._in_flight, self._thread = False, None
        fault, self._fault = self._fault, None
        gone, self._gone = self._gone, set()
        if gone:
            self.process.say(
                f"Warning: {', '.join(sorted(gone))} is gone from {self.checkpoints.folder}: something other than this run removed "
                f"it, and the run cannot go back to it. {'Step' if fault is None else 'Not even step'} {self.saved} is saved there."
            )
        failure = [None if fault is None else str(fault) or type(fault).__name__]
        if world_size() > 1:
            dist.broadcast_object_list(failure, src=0)
        if fault and not isinstance(fault, (OSError, SafetensorError)):
            raise fault
        if failure[0] is not None:
            raise M2I2Error(
                f"Saving the checkpoint {self.checkpoints.folder / Checkpoints.name(self.saved)} failed: {failure[0]}. Earlier "
                f"checkpoints are untouched; make room or check the folder's permissions, and start the same command again to "
                f"resume."
            )

    def _require_same_replicas(self, step: int) -> None:
        if world_size() == 1:
            return
        replicas = [tensor for tensors in self._modules().values() for tensor in tensors.values()]
        if not same_on_all_ranks(checksum(replicas)):
            raise M2I2Error(
                f"The ranks' weights, teachers or queues differ before the checkpoint of step {step}: it was not saved. "
                f"This is a fault of the machine or of this program; resume from the previous checkpoint and report it."
            )

    def _modules(self) -> Files:
        """The live tensors of the student and of what is beside it."""
        modules = {"model": self.task.student, **self.task.beside}
        return {name: dict(module.state_dict()) for name, module in modules.items()}

    def _names(self) -> set[str]:
        return {path.name for path in self.checkpoints.all()}

    def _write(self, step: int, files: Files, state: RunState) -> None:
        """Put the checkpoint on the disk. In a thread of its own, on rank 0."""

        def fill(folder: Path) -> dict[str, str]:
            digests = {f"{name}.safetensors": write_tensors(folder / f"{name}.safetensors", files[name]) for name in files}
            write_json(folder / "config.json", {"stage": type(self.config).__name__, **to_dict(self.config)})
            write_json(folder / "state.json", state)
            self.store_tokenizer(folder / "tokenizer")
            return digests

        began = time.monotonic()
        try:
            self._gone = self._there - self._names()
            self.checkpoints.put(step, fill)
            self._there = self._names()
        except Exception as e:  # raised by `finish`, in the training's thread
            self._fault = e
        self.seconds = time.monotonic() - began
