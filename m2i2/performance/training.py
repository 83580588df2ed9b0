"""Training steps timed: the launchers' own trainer and its `step`, on drawn batches of fixed lengths."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.data.loading.batch import Batch, CaptionBatch, QuestionBatch
from m2i2.data.loading.loader import Loader
from m2i2.data.loading.masking import places_of
from m2i2.data.loading.sampling import Share
from m2i2.models.flops import finetuning_flops, pretraining_flops
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.vqa import VQAModel
from m2i2.performance.measuring import Ceiling, StepClock, peak_memory_gb
from m2i2.performance.tracing import profile_steps
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Task
from m2i2.tasks.vqa import VQATask
from m2i2.training.runtime import Runtime
from m2i2.training.trainer import Trainer

_MIDDLE = 500
"""Number of the first step within an epoch of 1,000: the share of soft targets is half its full value, as nothing is at 0."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How much is measured."""

    steps: int = 5
    warm_up: int = 2
    """Steps before them: memory settles, and layers are compiled where the settings ask for it."""
    trace: Path | None = None
    """A folder for the trace of a few steps more."""


class DrawnBatches:
    """In the place of a loader: batches drawn one after another, in epochs of 1,000 steps."""

    steps_per_epoch = 2 * _MIDDLE

    def __init__(self, share: Share, draw: Callable[[], Batch]) -> None:
        self.share, self._draw = share, draw

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._draw()


def drawn_captions(config: PretrainingConfig, rows: int, tokens: int) -> CaptionBatch:
    """A batch of random pixels and words, every caption ``tokens`` long; 15 % of the words are asked for."""
    vision, words = config.vision, config.text.vocabulary_size
    ids = torch.randint(words, (rows, tokens))
    asked = torch.zeros(rows * (tokens - 1), dtype=torch.bool)
    asked[torch.randperm(len(asked))[: round(config.objectives.text_mask_ratio * len(asked))]] = True
    chosen = torch.cat([torch.zeros(rows, 1, dtype=torch.bool), asked.view(rows, -1)], dim=1)
    labels = torch.where(chosen, ids, -100)
    return CaptionBatch(
        image=torch.randint(256, (rows, 3, vision.image_size, vision.image_size), dtype=torch.uint8),
        item=torch.arange(rows),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        masked_input_ids=torch.where(chosen, torch.randint_like(ids, words), ids),
        labels=labels,
        places=torch.from_numpy(places_of(labels.numpy(), config.objectives.text_mask_ratio)),
        student_noise=torch.rand(rows, vision.patches),
        teacher_noise=torch.rand(rows, vision.patches),
        image_id=torch.randint(1 << 60, (rows,)),
        caption_id=torch.randint(1 << 60, (rows,)),
    )


def drawn_questions(config: FinetuningConfig, rows: int, question: int, answer: int) -> QuestionBatch:
    """A batch of random pixels and words, all questions and answers of the given lengths in tokens."""
    side, words = config.vision.image_size, config.text.vocabulary_size
    question_ids, answer_ids = torch.randint(words, (rows, question)), torch.randint(words, (rows, answer))
    return QuestionBatch(
        image=torch.randint(256, (rows, 3, side, side), dtype=torch.uint8),
        item=torch.arange(rows),
        question_ids=question_ids,
        question_mask=torch.ones_like(question_ids),
        answer_ids=answer_ids,
        answer_mask=torch.ones_like(answer_ids),
    )


def kept_batches(draw: Callable[[], Batch], device: torch.device, count: int = 2) -> Callable[[], Batch]:
    """On a GPU, ``count`` batches in page-locked memory again and again, as a loader that is always in time gives them.

    On a CPU, drawing takes a time that `StepClock` leaves out, and each batch is a new one.
    """
    if device.type != "cuda":
        return draw
    kept = itertools.cycle([draw().pin_memory() for _ in range(count)])
    return lambda: next(kept)


def pretraining_task(config: PretrainingConfig, runtime: Runtime) -> PretrainingTask:
    """The task with random weights, the same on every rank."""
    torch.manual_seed(config.training.seed)
    return PretrainingTask(PretrainingModel(config.vision, config.text, config.objectives), config, runtime.dtype)


def trainer_of(task: Task, config: PretrainingConfig | FinetuningConfig, batches: Any, runtime: Runtime) -> Trainer:
    """The launchers' trainer, in the middle of an epoch of drawn batches. It has no folder and no tokenizer: nothing is saved."""
    trainer = Trainer(config, task, cast(Loader[Any], batches), runtime, Path(), lambda folder: None)
    trainer.done = _MIDDLE
    return trainer


def time_pretraining(config: PretrainingConfig, runtime: Runtime, timing: Timing, *, batch: int, tokens: int) -> dict[str, Any]:
    """Median optimizer step at a global ``batch`` of captions ``tokens`` long. Collective."""
    config = replace(config, training=replace(config.training, batch=batch))
    task = pretraining_task(config, runtime)
    flops = sum(pretraining_flops(config, tokens, batch).values()) * batch
    share = Share(
        batch, config.training.accumulation, runtime.process.rank, runtime.process.ranks, config.objectives.scope == "batch"
    )
    draw = lambda: drawn_captions(config, share.micro_batch, tokens)  # noqa: E731
    return {"tokens": tokens, **_time_steps(task, config, runtime, share, draw, flops, timing)}


def time_finetuning(
    config: FinetuningConfig, runtime: Runtime, timing: Timing, *, batch: int, question: int, answer: int
) -> dict[str, Any]:
    """Median optimizer step at a global ``batch`` of questions, lengths in tokens. Collective."""
    config = replace(config, training=replace(config.training, batch=batch))
    torch.manual_seed(config.training.seed)
    task = VQATask(VQAModel(config.vision, config.text), config, runtime.dtype)
    flops = sum(finetuning_flops(config, question, answer).values()) * batch
    share = Share(batch, config.training.accumulation, runtime.process.rank, runtime.process.ranks)
    draw = lambda: drawn_questions(config, share.micro_batch, question, answer)  # noqa: E731
    found = _time_steps(task, config, runtime, share, draw, flops, timing)
    return {"question_tokens": question, "answer_tokens": answer, **found}


def _time_steps(
    task: Task,
    config: PretrainingConfig | FinetuningConfig,
    runtime: Runtime,
    share: Share,
    draw: Callable[[], Batch],
    flops: float,
    timing: Timing,
) -> dict[str, Any]:
    process, device, batch = runtime.process, runtime.device, config.training.batch
    drawn = DrawnBatches(share, kept_batches(draw, device, 2 * share.accumulation))
    trainer = trainer_of(task, config, drawn, runtime)
    ceiling, clock = Ceiling(runtime.dtype, device), StepClock(device, timing.warm_up)
    for number in range(timing.warm_up + timing.steps):
        if number >= timing.warm_up:
            ceiling.between_steps()
        if device.type != "cuda":
            dist.barrier()  # no rank's step begins while another one still measures its ceiling
        clock.step(lambda: trainer.step().waited)
    seconds, memory = clock.median, peak_memory_gb(device)
    rate = flops / process.ranks / seconds
    profiled = profile_steps(trainer.step, timing.trace, device, active=process.first) if timing.trace else {}
    return {
        "preset": config.preset,
        "kernels": runtime.backend.kernel,
        "precision": str(runtime.dtype).removeprefix("torch."),
        "batch": batch,
        "accumulation": share.accumulation,
        "ranks": process.ranks,
        "threads": torch.get_num_threads(),
        "seconds_per_step": seconds,
        "seconds_per_step_all": clock.seconds,
        "pairs_per_s": batch / seconds,
        "gflop_per_pair": flops / batch / 1e9,
        "gflop_per_s_per_rank": rate / 1e9,
        "ceiling_gflop_per_s_per_rank": ceiling.flops / 1e9,
        "mfu": rate / ceiling.flops,
        **memory,
        **profiled,
    }
