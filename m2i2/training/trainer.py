"""The training loop, the same for pretraining and finetuning: one optimizer step after another, saved and resumed."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m2i2.backends.heap import give_back_holes, keep_freed_memory
from m2i2.backends.kernels import install
from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.data.loading.batch import Batch
from m2i2.data.loading.loader import Loader
from m2i2.data.loading.sampling import Position
from m2i2.distributed import all_gather, digest, same_on_all_ranks
from m2i2.errors import M2I2Error
from m2i2.options import differences, to_dict
from m2i2.training.checkpoint import Checkpoints, copy_into, read_config, read_state, read_tensors, write_json, write_tensors
from m2i2.training.deepspeed.engine import complete_config, load_optimizer_state, optimizer_state, set_learning_rate, start_engine
from m2i2.training.guards import NonFiniteGuard, UnreadableSamples, poisoned_if_not_finite
from m2i2.training.lines import StepLines
from m2i2.training.monitor import Averages, RunLog, peak_memory, utilisation
from m2i2.training.optimizer import adamw, learning_rate
from m2i2.training.processes import Process
from m2i2.training.selecting import Selection
from m2i2.training.stopping import EXIT_STOPPED, StopFlag
from m2i2.training.validation import Validation

_FREE_ON_RESUME = (
    *("training.max_steps", "training.save_every", "training.keep", "training.log_every", "training.log_items"),
    *("training.max_nonfinite", "training.accumulation", "training.kernels", "training.compile"),
    *("data.workers", "data.shards", "data.max_unreadable", "data.cache_", "start.", "validation.", "monitor."),
)
"""Settings that a resumed run may change (the data's identity is checked by its fingerprint)."""

HOLES_EVERY = 50
"""Steps after which the heap's holes go back to the system."""


class Task(ABC):
    """What is trained: the student, what stands beside it (teacher, queue), and the losses of a micro-batch."""

    student: nn.Module
    beside: Mapping[str, nn.Module]
    """Modules outside the engine, equal on every rank, saved and loaded with the student."""

    @abstractmethod
    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """Before the first micro-batch of an optimizer step: what its number decides."""

    @abstractmethod
    def losses(self, engine: nn.Module, batch: Any, step: int, micro: int) -> dict[str, Tensor]:
        """Losses of a micro-batch by name; ``loss`` is what is differentiated, the rest is for the log."""

    def end_step(self) -> None:
        """After the optimizer's step: the teacher follows the student."""
        return

    def skip_step(self) -> None:
        """In place of `end_step` after a step that was skipped because it was not finite."""
        return

    def flops(self, batch: Any) -> float:
        """Floating-point operations of a micro-batch's forward and backward pass, for MFU; 0 where nobody has counted them."""
        return 0.0

    def readings(self) -> dict[str, float]:
        """Further figures for the log, such as the temperature."""
        return {}


def train(
    task: Task,
    loader: Loader[Any],
    config: PretrainingConfig | FinetuningConfig,
    deepspeed_config: Mapping[str, Any],
    deepspeed_source: str,
    folder: Path,
    process: Process,
    dtype: torch.dtype,
    store_tokenizer: Callable[[Path], None],
    stop: StopFlag,
    selection: Selection | None = None,
    validation: Validation | None = None,
) -> int:
    """Train ``task`` on ``loader`` to the end, resuming from the newest checkpoint in ``folder``; returns the exit code."""
    # --- engine
    training, optimization = config.training, config.optimizer
    task.student.to(process.device)
    for module in task.beside.values():
        module.to(process.device)
    kernels = install((task.student, *task.beside.values()), training, process.device)
    engine = start_engine(
        task.student,
        adamw(task.student, optimization, kernels),
        complete_config(dict(deepspeed_config), loader.share, optimization.clip, dtype, deepspeed_source),
    )

    # --- where we are
    checkpoints = Checkpoints(folder / "checkpoints", training.keep, training.keep_every)
    steps_per_epoch = loader.steps_per_epoch
    total = training.epochs * steps_per_epoch
    last = min(total, training.max_steps) if training.max_steps else total
    step, skipped = _resume(task, engine, checkpoints, config, loader, process)
    loader.starting_at(Position(step // steps_per_epoch, step % steps_per_epoch))
    if selection is not None:
        selection.resume(checkpoints, step)
    if step >= last:
        process.say(f"Nothing left to do: {folder} has finished {step} of {last} steps.")
        return 0
    process.say(
        f"{last - step} steps to go: {len(loader.corpus)} items, {steps_per_epoch} steps an epoch, {training.epochs} epochs; "
        f"batch {loader.share.batch} = {loader.share.ranks} rank(s) x {loader.share.micro_batch} x {loader.share.accumulation}, "
        f"{str(dtype).removeprefix('torch.')} on {process.device.type}. {kernels}."
        + (" Ranks share weights and gradients in /dev/shm." if engine.shares_memory else "")
    )
    if loader.share.accumulation > 1:
        process.say(
            f"With accumulation {loader.share.accumulation}, in-batch and hard negatives come from micro-batches of "
            f"{loader.share.batch // loader.share.accumulation} samples, not from the whole batch of {loader.share.batch}; "
            f"the word loss is the mean of the micro-batches' means."
        )

    def save() -> None:
        _save(task, engine, checkpoints, config, loader, step, finite.skipped, store_tokenizer)

    # --- steps
    averages = Averages()
    finite = NonFiniteGuard(training.max_nonfinite, process, skipped)
    unreadable = UnreadableSamples(folder, config.data.max_unreadable, len(loader.corpus), process, step)
    item_lines = StepLines(folder / "items.jsonl", step) if process.first else None
    saved = step
    batches = iter(loader)
    run_log = RunLog(folder, config.monitor, to_dict(config), active=process.first, total_steps=last, done_steps=step)
    with stop, run_log as log:
        if validation is not None and validation.due(step, last):  # the run was stopped between saving and measuring
            log.validated(step, validation.measure(step))
        since, waited, since_step, work = time.monotonic(), 0.0, step, 0.0
        while step < last:
            lr = learning_rate(optimization, step, steps_per_epoch, training.epochs)
            set_learning_rate(engine, lr)
            task.begin_step(step, steps_per_epoch)
            losses: list[dict[str, Tensor]] = []
            items: list[Tensor] = []
            not_read: list[tuple[int, str]] = []
            for micro in range(loader.share.accumulation):
                waiting = time.monotonic()
                batch: Batch = next(batches)
                waited += time.monotonic() - waiting
                _seed(training.seed, step, micro, process.rank)
                not_read += batch.unreadable
                batch = batch.to(process.device)
                items.append(batch.item)
                work += task.flops(batch)
                losses.append(task.losses(engine, batch, step, micro))
                engine.backward(poisoned_if_not_finite(losses[-1]["loss"]))
                engine.step()
            keep_freed_memory()  # now that weights, moments and teacher have their places
            step += 1
            if step % HOLES_EVERY == 0:
                give_back_holes()
            if finite.passed(engine.was_step_applied(), losses, step):
                task.end_step()
                for values in losses:
                    averages.add(values)
            else:
                task.skip_step()
            if training.log_items:
                everyones = _in_global_order(torch.stack(items), loader.share.ranks)
                if item_lines:
                    item_lines.add({"step": step, "items": everyones})
            if step % training.log_every == 0 or step == last:
                seconds = time.monotonic() - since
                rate = (step - since_step) * loader.share.batch / seconds
                row = {
                    "step": step,
                    "epoch": step / steps_per_epoch,
                    **averages.read(),
                    **task.readings(),
                    "lr": lr,
                    "samples_per_s": rate,
                    "data_wait": waited / seconds,
                    "memory_gib": peak_memory(process.device),
                    **utilisation(work / seconds, config.monitor.peak_tflops),
                    "skipped_steps": finite.skipped,
                    "unreadable": len(unreadable.items),
                }
                log.write(row)
                since, waited, since_step, work = time.monotonic(), 0.0, step, 0.0
            signal, news = stop.agreed(bool(not_read))
            if news:
                unreadable.add(step, not_read)
            scored = selection is not None and selection.due(step, last) and not finite.streak
            better = scored and selection is not None and selection.improved(engine.module, step, process)
            regular = step % training.save_every == 0 and not finite.streak
            if better or regular or step == last or signal:
                save()
                saved = step
            if scored and selection is not None and process.first:
                selection.write(checkpoints)
            if signal:
                process.say(f"Signal {signal}: saved after step {saved}; start the same command again to go on.")
                return EXIT_STOPPED
            if validation is not None and validation.due(step, last):
                started = time.monotonic()
                log.validated(step, validation.measure(step))
                since += time.monotonic() - started
    process.say(f"Done: {step} steps; the model is {checkpoints.folder / Checkpoints.name(saved)}.")
    return 0


def _in_global_order(items: Tensor, ranks: int) -> list[int]:
    """This rank's items of a step [micro-batches, b] -> those of all ranks in the order of the global batch. Collective."""
    everyones = all_gather(items).unflatten(0, (ranks, len(items)))
    return everyones.transpose(0, 1).flatten().tolist()


def _seed(*key: int) -> None:
    """Seed torch's generators (dropout) from (seed, step, micro-batch, rank), so that resuming needs no generator state."""
    mixed = 0
    for part in key:
        mixed = (mixed * 1_000_003 + part + 1) % (1 << 61)
    torch.manual_seed(mixed)


def _save(
    task: Task,
    engine: Any,
    checkpoints: Checkpoints,
    config: PretrainingConfig | FinetuningConfig,
    loader: Loader[Any],
    step: int,
    skipped: int,
    store_tokenizer: Callable[[Path], None],
) -> None:
    replicas = [t for module in task.beside.values() for t in module.state_dict().values()]
    replicas += list(engine.module.state_dict().values())
    if not same_on_all_ranks(digest(replicas), next(engine.module.parameters()).device):
        raise M2I2Error(
            f"The ranks' weights, teachers or queues differ before the checkpoint of step {step}: it was not saved. "
            f"This is a fault of the machine or of this program; resume from the previous checkpoint and report it."
        )
    gathered = optimizer_state(engine)

    def write(folder: Path) -> None:
        assert gathered is not None
        moments, optimizer_steps = gathered
        write_tensors(folder / "model.safetensors", engine.module.state_dict())
        write_tensors(folder / "optimizer.safetensors", moments)
        for name, module in task.beside.items():
            write_tensors(folder / f"{name}.safetensors", module.state_dict())
        write_json(folder / "config.json", {"stage": type(config).__name__, **to_dict(config)})
        write_json(
            folder / "state.json",
            {
                "step": step,
                "skipped_steps": skipped,
                "optimizer_steps": optimizer_steps,
                "position": asdict(Position(step // loader.steps_per_epoch, step % loader.steps_per_epoch)),
                "samples": step * loader.share.batch,
                "seed": config.training.seed,
                "data": loader.corpus.fingerprint,
                "ranks": loader.share.ranks,
            },
        )
        store_tokenizer(folder / "tokenizer")

    checkpoints.save(step, write)


def _resume(
    task: Task,
    engine: Any,
    checkpoints: Checkpoints,
    config: PretrainingConfig | FinetuningConfig,
    loader: Loader[Any],
    process: Process,
) -> tuple[int, int]:
    """Load the newest complete checkpoint, if there is one, into everything; returns the steps done, and skipped of them."""
    found: list[Any] = [*checkpoints.newest()] if process.first else [None, None]
    dist.broadcast_object_list(found, src=0)
    path, passed_over = found
    if path is None and passed_over:
        raise M2I2Error(
            f"No checkpoint of {checkpoints.folder} is complete ({'; '.join(f'{n}: {why}' for n, why in passed_over.items())}). "
            f"Bring one back from a copy; or remove them, or choose another --output, to start anew."
        )
    if path is None:
        return 0, 0
    state = read_state(path)
    stored = read_config(type(config), path)
    changed = [k for k in differences(stored, config) if not k.startswith(_FREE_ON_RESUME)]
    if changed:
        raise M2I2Error(
            f"{checkpoints.folder} was trained with other settings ({', '.join(changed[:8])}); continue with the same, "
            f"or choose another --output for a new run."
        )
    if state.get("data") != loader.corpus.fingerprint:
        raise M2I2Error(
            f"{checkpoints.folder} was trained on other data than these shards; give the same --shards in the same order, "
            f"or choose another --output for a new run."
        )
    for name, why in passed_over.items() if process.first else ():
        process.say(f"Passed over the checkpoint {name}: {why}. It is now {checkpoints.set_aside(name)}.")
    copy_into(engine.module, read_tensors(path / "model.safetensors"), f"{path}/model.safetensors")
    for name, module in task.beside.items():
        copy_into(module, read_tensors(path / f"{name}.safetensors"), f"{path}/{name}.safetensors")
    load_optimizer_state(engine, read_tensors(path / "optimizer.safetensors"), state["optimizer_steps"])
    process.say(f"Resuming after step {state['step']} from {path}.")
    return state["step"], state["skipped_steps"]
