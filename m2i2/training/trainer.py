"""The trainer, the same for pretraining and finetuning: one optimizer step after another, measured, saved and resumed."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2i2.backends import attention
from m2i2.backends.choice import fuse_and_compile
from m2i2.backends.graphs import Replayed, recorder
from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.data.loading.batch import Batch
from m2i2.data.loading.loader import Loader
from m2i2.data.loading.sampling import Position, Share
from m2i2.distributed import all_gather, on_first_rank
from m2i2.errors import M2I2Error
from m2i2.options import to_dict
from m2i2.tasks.task import Key, Output, Task, step_generator_seed
from m2i2.training.ahead import Ahead
from m2i2.training.checkpoint import Checkpoints
from m2i2.training.engines import make_engine
from m2i2.training.evaluators import Evaluator, Measured
from m2i2.training.flat import keep_copies
from m2i2.training.goodput import Goodput
from m2i2.training.lines import StepLines
from m2i2.training.monitor import Meter, RunLog, StepResult
from m2i2.training.nonfinite import NonFiniteGuard
from m2i2.training.optimizer import learning_rate
from m2i2.training.profiling import StepProfiler
from m2i2.training.replays.replays import Replays
from m2i2.training.resuming import load, state_to_resume
from m2i2.training.runtime import Runtime
from m2i2.training.saving import Saver
from m2i2.training.scaling import HALVINGS
from m2i2.training.stopping import EXIT_STOPPED, Agreed, StopFlag
from m2i2.training.stored_state import StoredState
from m2i2.training.stragglers import Stragglers
from m2i2.training.suspicion import Suspicions
from m2i2.training.unreadable import UnreadableSamples
from m2i2.training.watching.beat import DATA, MEASURING, SAVING
from m2i2.training.watching.watch import Watch


class Trainer:
    """One run. `step` is the only place where weights change; the launchers, the benchmark and the tests all go through it."""

    def __init__(
        self,
        config: PretrainingConfig | FinetuningConfig,
        task: Task,
        loader: Loader[Any],
        runtime: Runtime,
        folder: Path,
        store_tokenizer: Callable[[Path], None],
        evaluators: Sequence[Evaluator] = (),
    ) -> None:
        """``folder`` is the run's; ``store_tokenizer`` writes the tokenizer into a checkpoint's folder. Collective."""
        self.config, self.task, self.loader, self.runtime, self.folder = config, task, loader, runtime, folder
        self.process, self.evaluators = runtime.process, list(evaluators)
        modules = (task.student, *task.beside.values())
        for module in modules:
            module.to(runtime.device)
        fuse_and_compile(modules, runtime.backend, config.training)
        self.engine = make_engine(task.student, config.optimizer, config.training, runtime, loader.share)
        task.placed()
        keep_copies(self.engine, modules, config.training, runtime)
        self._compute_attention_by(attention.chosen(config, loader.share.micro_batch, runtime.device, runtime.dtype))
        tape, self._recording = recorder(runtime.backend, config.training, loader.share.ranks)
        self._work = Replayed(self._micro_batch, tape, task.forget, self.process.say) if tape else self._micro_batch
        self.checkpoints = Checkpoints(folder / "checkpoints", config.training.keep, config.training.keep_every)
        allowed = config.training.max_nonfinite + (HALVINGS if self.engine.scale else 0)
        self.nonfinite = NonFiniteGuard(allowed, self.process)
        self.saver = Saver(config, task, self.engine, self.checkpoints, self.process, store_tokenizer)
        self.done = 0
        """Optimizer steps done."""
        self._batches: Ahead | None = None
        self._resumed = False
        readings = self.config.training.log_every * loader.share.passes * loader.share.ranks
        self._suspicions = Suspicions(folder, config.training, self.engine, task.student, self.process, readings)
        self._stored = StoredState(task, self.engine, self.process, active=config.training.check_state)
        self._replays = Replays(folder, config.training, task, self.engine, runtime, self.saver)
        self._recent: tuple[Key, Batch] | None = None
        """The step's first micro-batch, until the next step."""
        self._go_back = False
        self._goodput: Goodput | None = None
        self._watch, self._stragglers = Watch(folder, self.process, 0), Stragglers(self.process)

    def _compute_attention_by(self, order: Sequence[str]) -> None:
        """Let attention try its kernels in this order; empty: in PyTorch's."""
        self.attention = tuple(order)
        attention.use(order)

    @property
    def last(self) -> int:
        """The step after which the run ends."""
        total = self.config.training.epochs * self.loader.steps_per_epoch
        return min(total, self.config.training.max_steps) if self.config.training.max_steps else total

    # --- a step

    def step(self) -> StepResult:
        """One optimizer step: its micro-batches forward and backward, the optimizer, the teacher. Collective."""
        self._stragglers.begin_step()
        self._stored.begin_step(self.done + 1)
        training, steps_per_epoch = self.config.training, self.loader.steps_per_epoch
        lr = learning_rate(self.config.optimizer, self.done, steps_per_epoch, training.epochs)
        self.engine.set_learning_rate(lr)
        self.task.begin_step(self.done, steps_per_epoch)
        result, held, self._recent = StepResult(lr), list[list[Batch]](), None
        self._suspicions.limit()
        for micro in range(self.loader.share.passes):
            held.append([self._next_batch(result) for _ in range(self.loader.share.accumulation // self.loader.share.passes)])
            result.losses.append(self._pass(Key(training.seed, self.done, micro), held[micro]))
            if self._batches and (micro + 1 < self.loader.share.passes or self.done + 1 < self.last):
                with self._watch.doing(DATA):
                    self._batches.send()
        if self._suspicions.doubted():
            self._compute_again(result, held)
        self._recent = Key(training.seed, self.done, 0), held[0][0]
        self.done += 1
        self._stored.end_step(self.done)
        self._watch.stepped(self.done)
        self._stragglers.end_step()
        self.runtime.backend.after_step(self.done)
        result.applied = self.engine.applied.clone()
        self.nonfinite.add(result.applied, result.losses, self.done)
        return result

    def _compute_again(self, result: StepResult, held: Sequence[Sequence[Batch]]) -> None:
        """Settle whether the step was refused correctly: its losses become those that count. Collective."""
        seed = self.config.training.seed

        def compute() -> list[dict[str, Tensor]]:
            return [self._pass(Key(seed, self.done, micro), batches) for micro, batches in enumerate(held)]

        began = time.monotonic()
        items = _in_global_order(torch.stack(result.items), self.loader.share)
        result.losses, self._go_back = self._suspicions.settle(self.done + 1, result.losses, compute, items)
        result.replayed = time.monotonic() - began

    def _pass(self, key: Key, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The losses of a micro-batch, or of all that are taken together, after their backward pass."""
        self.task.begin_micro_batch(key)
        torch.manual_seed(step_generator_seed(key, self.process.rank))
        if len(batches) == 1:
            return self._work(batches[0])
        scale = self.engine.scale.value if self.engine.scale else None
        return self._differentiate(lambda: self.task.compute_together(batches, key, scale))

    def _micro_batch(self, batch: Batch) -> dict[str, Tensor]:
        """A micro-batch forward and backward and, after a step's last one, the update: all that the device does."""
        return self._differentiate(lambda: self.task.compute(batch))

    def _differentiate(self, compute: Callable[[], Output]) -> dict[str, Tensor]:
        output = self.engine.forward(compute)
        self.engine.backward(output.loss)
        if self.engine.micro_step():
            self.task.end_step(self.engine.applied)
        return {"loss": output.loss.detach(), **{name: loss.detach() for name, loss in output.losses.items()}}

    def _next_batch(self, result: StepResult) -> Batch:
        """The next micro-batch on the device; what it cost is noted in ``result``."""
        if self._batches is None:
            self._batches = Ahead(iter(self.loader), self.runtime.device)
        with self._watch.doing(DATA):
            batch = next(self._batches)
        result.waited += self._batches.waited
        result.unreadable += batch.unreadable
        result.items.append(batch.item)
        result.flops += self.task.flops(batch)
        return batch

    # --- a run

    def run(self, stop: StopFlag | None = None, begun: Callable[[], None] = lambda: None) -> int:
        """Train to the end, from the newest checkpoint of the folder if there is one; returns the exit code. Collective.

        ``stop`` says when to stop earlier (default: on SIGTERM, SIGINT and SIGUSR2, from now on). ``begun`` is called before
        the first step, once nothing can refuse the start any more, and not at all where nothing is left to do.
        """
        stop = stop or StopFlag()
        if not self._resumed:
            self.resume()
        with Watch(self.folder, self.process, self.config.training.hang_seconds) as self._watch:
            return self._run(stop, begun)

    def _run(self, stop: StopFlag, begun: Callable[[], None]) -> int:
        if self.done >= self.last and not self._unmeasured():
            self.process.say(f"Nothing left to do: {self.folder} has finished {self.done} steps; the run ends at {self.last}.")
            return 0
        self._introduce()
        unreadable = UnreadableSamples(
            self.folder, self.config.data.max_unreadable, len(self.loader.corpus), self.process, self.done
        )
        settings = to_dict(self.config)
        # before the log starts threads: loader workers are forked
        self._batches = Ahead(iter(self.loader), self.runtime.device)
        run_log = RunLog(
            self.folder, self.config.monitor, settings, active=self.process.first, total_steps=self.last, done_steps=self.done
        )
        profiler = StepProfiler(
            self.folder, self.config.training.profile if self.process.first else 0, self.runtime.device, self.process.say
        )
        with stop, run_log as log, profiler:
            begun()
            self._goodput = goodput = Goodput(self.folder, self.done, active=self.process.first)
            before = self.nonfinite.skipped
            self._suspicions.begin(self.done)
            self._replays.begin(self.done)
            items = StepLines(self.folder / "items.jsonl", self.done) if self.process.first else None
            if self._unmeasured():  # the run was stopped between saving and measuring
                self._measure(log)
            self.saver.prepare()
            meter, agreed = Meter(self.config, self.runtime.device, self.done), Agreed()
            while self.done < self.last:
                result = self.step()
                meter.add(result)
                goodput.add("data", result.waited)
                goodput.add("replays", result.replayed)
                with meter.paused():
                    profiler.step()
                    if self._recent and self._replays.due(self.done, self.last):
                        with goodput.spending("replays"):
                            self._replays.check(self.done, *self._recent)
                self._write_items(result, items)
                if self.done % self.config.training.log_every == 0 or self.done == self.last:
                    row = self._log_row(meter, result, unreadable)
                    log.write(row | goodput.reading(self.done, self.nonfinite.skipped - before))
                agreed = stop.agreed(bool(result.unreadable), self.saver.overdue(), self.saver.failed)
                if agreed.news:
                    unreadable.add(self.done, result.unreadable)
                with self._doing("saves", SAVING):
                    if agreed.failed:
                        self.saver.finish()
                    if agreed.signal:
                        self._save_last(agreed.signal, stop)
                        break
                    if self._go_back:
                        self._skip_since_checkpoint()
                    elif self._save_due(agreed.overdue):
                        self._begin_save()
                with meter.paused():
                    self._measure(log)
            with self._doing("saves", SAVING):
                self.saver.finish()
            goodput.reading(self.done, self.nonfinite.skipped - before)
        if agreed.signal:
            return EXIT_STOPPED
        self.process.say(f"Done: {self.done} steps; the model is {self.checkpoints.folder / Checkpoints.name(self.saver.saved)}.")
        return 0

    @contextmanager
    def _doing(self, kind: str, phase: int) -> Iterator[None]:
        """Within it this rank does something else than steps: for goodput and for those who watch."""
        assert self._goodput is not None
        with self._goodput.spending(kind), self._watch.doing(phase):
            yield

    def _introduce(self) -> None:
        """Say what is about to happen."""
        share = self.loader.share
        self.process.say(
            f"{self.last - self.done} steps to go: {len(self.loader.corpus)} items, {self.loader.steps_per_epoch} steps per epoch, "
            f"{self.config.training.epochs} epochs; batch {share.batch} = {share.ranks} rank(s) x {share.micro_batch} x "
            f"{share.accumulation}, {self.runtime}"
            + (" Ranks share weights and gradients in /dev/shm." if self.engine.shares_memory else "")
        )
        chosen = [remark for remark in (attention.remark(self.attention), self._recording) if remark]
        for remark in (*chosen, *self.engine.remarks, *share.remarks, *self.task.remarks(share)):
            self.process.say(remark)

    def _log_row(self, meter: Meter, result: StepResult, unreadable: UnreadableSamples) -> dict[str, object]:
        """A line of the log. Collective; waits for the device."""
        self.nonfinite.settle()
        losses = meter.losses()
        self._suspicions.band.add(losses.get("loss"))
        return {
            "step": self.done,
            "epoch": self.done / self.loader.steps_per_epoch,
            **losses,
            **self.task.readings(),
            "lr": result.lr,
            **meter.speed(self.done),
            **self._stragglers.reading(),
            "skipped_steps": self.nonfinite.skipped,
            "unreadable": len(unreadable.items),
        }

    def _write_items(self, result: StepResult, lines: StepLines | None) -> None:
        """Note the step's samples, where ``training.log_items`` asks for it. Collective."""
        if self.config.training.log_items:
            numbers = _in_global_order(torch.stack(result.items), self.loader.share)
            if lines:
                lines.add({"step": self.done, "items": numbers})

    def _save_due(self, overdue: bool) -> bool:
        if self.done == self.last:
            return True
        if self.done % self.config.training.save_every and not overdue:
            return False
        self.nonfinite.settle()
        return not self.nonfinite.streak

    # --- measuring

    def _due(self) -> list[Evaluator]:
        """The evaluators that measure after this step: none while steps are being skipped."""
        due = [one for one in self.evaluators if one.due(self.done, self.last)]
        if due:
            self.nonfinite.settle()
        return [] if self.nonfinite.streak and self.done != self.last else due

    def _unmeasured(self) -> bool:
        """Whether an evaluation that is due at this step has not been logged yet. Collective."""
        path = self.folder / "validation.jsonl"
        logged = on_first_rank(lambda: any(row["step"] == self.done for row in StepLines.of(path)))
        return bool(self._due()) and not logged

    def _measure(self, log: RunLog) -> None:
        """Let what is due measure, and save the model where one of them asks for it. Collective."""
        if due := self._due():
            with self._doing("validation", MEASURING):
                self._measure_by(due, log)

    def _measure_by(self, due: Sequence[Evaluator], log: RunLog) -> None:
        found = [one.measure(self.done) for one in due]
        if any(one.keep for one in found):
            with self._doing("saves", SAVING):
                if self.saver.saved != self.done:
                    self._begin_save()
                self.saver.finish()  # it must be complete before it is named
        if self.process.first:
            for one in due:
                one.conclude(self.checkpoints)
        values = {name: value for one in found for name, value in one.values.items()}
        log.validated(self.done, Measured(values, {name: path for one in found for name, path in one.pictures.items()}))

    # --- checkpoints

    def save(self) -> None:
        """Write a checkpoint of the current step, and wait for it. Collective; M2I2Error where replicas differ or it fails."""
        self._begin_save()
        self.saver.finish()

    def _begin_save(self) -> None:
        """The same, but only begun: it is complete, or has failed, after ``self.saver.finish()``."""
        self.nonfinite.settle()
        self.saver.begin(self.done, self._state())

    def _save_last(self, signal: int, stop: StopFlag) -> None:
        """Before the run stops: the newest state, where the grace that is left is long enough for it. Collective."""
        self.saver.finish()
        grace = self.config.training.grace_seconds
        if not grace or on_first_rank(lambda: stop.left(grace) > self.saver.seconds):
            self.save()
        self.process.say(f"Signal {signal}: saved after step {self.saver.saved}; start the same command again to go on.")

    def _state(self) -> dict[str, object]:
        """The state of the run, next to the tensors; ``position``, ``samples``, ``seed`` and ``ranks`` are for people."""
        per_epoch = self.loader.steps_per_epoch
        return {
            "step": self.done,
            "skipped_steps": self.nonfinite.skipped,
            "position": asdict(Position(self.done // per_epoch, self.done % per_epoch)),
            "samples": self.done * self.loader.share.batch,
            "seed": self.config.training.seed,
            "data": self.loader.corpus.fingerprint,
            "ranks": self.loader.share.ranks,
            **({"loss_scale": self.engine.scale.state()} if self.engine.scale else {}),
            **({"attention": list(self.attention)} if self.attention else {}),
            **({"loss_band": list(self._suspicions.band.readings)} if self.config.training.spike_sigma else {}),
        }

    def resume(self) -> None:
        """Continue after the newest complete checkpoint of the folder, if there is one. Collective."""
        path, passed_over = on_first_rank(self.checkpoints.newest)
        if path is None and passed_over:
            raise M2I2Error(
                f"No checkpoint of {self.checkpoints.folder} is complete "
                f"({'; '.join(f'{name}: {why}' for name, why in passed_over.items())}). "
                f"Bring one back from a copy; or remove them, or choose another --output, to start over."
            )
        if path is not None:
            state = state_to_resume(path, self.config, self.loader.corpus.fingerprint)
            self._set_aside(passed_over)
            load(path, state, self.task, self.engine)
            if self.attention and set(state.get("attention", ())) == set(self.attention):
                self._compute_attention_by(state["attention"])  # what was measured at the first start
            self.done = self.saver.saved = state["step"]
            self.nonfinite.skipped = state["skipped_steps"]
            self._suspicions.band.readings.extend(state.get("loss_band", ()))
            self.process.say(f"Resuming after step {self.done} from {path}.")
        per_epoch = self.loader.steps_per_epoch
        self.loader.starting_at(Position(self.done // per_epoch, self.done % per_epoch))
        self._batches, self._resumed = None, True
        for one in self.evaluators:
            one.resume(self.checkpoints, self.done)

    def _skip_since_checkpoint(self) -> None:
        """Go back to the weights of the newest checkpoint, and skip the steps since, with their data. Collective."""
        self._go_back = False
        self.saver.finish()
        path, _ = on_first_rank(self.checkpoints.newest)
        if path is None:
            self.process.say(f"There is no checkpoint to go back to: step {self.done} alone is skipped.")
            return
        state = state_to_resume(path, self.config, self.loader.corpus.fingerprint)
        load(path, state, self.task, self.engine)
        self._stored.forget()
        self.nonfinite.skipped += self.done - state["step"] - 1  # the last of them is counted already
        self.process.say(f"Went back to {path}: steps {state['step'] + 1} to {self.done} are skipped with their data.")
        self._begin_save()

    def _set_aside(self, passed_over: dict[str, str]) -> None:
        """Rename the checkpoints that are not complete, and name them."""
        for name, why in passed_over.items() if self.process.first else ():
            self.process.say(f"Passed over the checkpoint {name}: {why}. It is now {self.checkpoints.set_aside(name)}.")


def _in_global_order(items: Tensor, share: Share) -> list[int]:
    """This rank's items of a step [micro-batches, b] -> those of all ranks in the order of the global batch. Collective."""
    everyones = all_gather(items).unflatten(0, (share.ranks, len(items)))
    return (everyones if share.together else everyones.transpose(0, 1)).flatten().tolist()
