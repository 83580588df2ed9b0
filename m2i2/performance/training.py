"""Training steps timed: the launchers' own trainer and its `step`, on drawn batches of fixed lengths."""

from collections.abc import Callable, Iterator
from dataclasses import replace
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
from m2i2.performance.measuring import Ceiling, Rounds, peak_rss_gb, timed
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Task
from m2i2.tasks.vqa import VQATask
from m2i2.training.runtime import Runtime
from m2i2.training.trainer import Trainer

WARM_UP = 2
_MIDDLE = 500
"""Number of the first step within an epoch of 1,000: the share of soft targets is half its full value, as nothing is at 0."""


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


def time_pretraining(config: PretrainingConfig, runtime: Runtime, *, batch: int, tokens: int, steps: int) -> dict[str, Any]:
    """Median optimizer step at a global ``batch`` of captions ``tokens`` long. Collective."""
    config = replace(config, training=replace(config.training, batch=batch, accumulation=1))
    torch.manual_seed(config.training.seed)
    task = PretrainingTask(PretrainingModel(config.vision, config.text, config.objectives), config, runtime.dtype)
    flops = sum(pretraining_flops(config, tokens, batch).values()) * batch
    draw = lambda: drawn_captions(config, batch // runtime.process.ranks, tokens)  # noqa: E731
    return {"tokens": tokens, **_time_steps(task, config, runtime, draw, flops, steps)}


def time_finetuning(
    config: FinetuningConfig, runtime: Runtime, *, batch: int, question: int, answer: int, steps: int
) -> dict[str, Any]:
    """Median optimizer step at a global ``batch`` of questions, lengths in tokens. Collective."""
    config = replace(config, training=replace(config.training, batch=batch, accumulation=1))
    torch.manual_seed(config.training.seed)
    task = VQATask(VQAModel(config.vision, config.text), config, runtime.dtype)
    flops = sum(finetuning_flops(config, question, answer).values()) * batch
    draw = lambda: drawn_questions(config, batch // runtime.process.ranks, question, answer)  # noqa: E731
    found = _time_steps(task, config, runtime, draw, flops, steps)
    return {"question_tokens": question, "answer_tokens": answer, **found}


def _time_steps(
    task: Task,
    config: PretrainingConfig | FinetuningConfig,
    runtime: Runtime,
    draw: Callable[[], Batch],
    flops: float,
    steps: int,
) -> dict[str, Any]:
    process, batch = runtime.process, config.training.batch
    drawn = DrawnBatches(Share(batch, 1, process.rank, process.ranks), draw)
    # nothing is saved: no folder, no tokenizer
    trainer = Trainer(config, task, cast(Loader[Any], drawn), runtime, Path(), lambda folder: None)
    trainer.done = _MIDDLE
    ceiling, rounds = Ceiling(runtime.dtype, runtime.device), Rounds(WARM_UP)
    for number in range(WARM_UP + steps):
        if number >= WARM_UP:
            ceiling.sample()
        dist.barrier()  # no rank's step begins while another one still measures its ceiling
        waited = 0.0

        def step() -> None:
            nonlocal waited
            waited = trainer.step().waited

        rounds.add(timed(step, runtime.device) - waited)
    rate = flops / process.ranks / rounds.median
    return {
        "preset": config.preset,
        "kernels": runtime.backend.kernel,
        "precision": str(runtime.dtype).removeprefix("torch."),
        "batch": batch,
        "ranks": process.ranks,
        "threads": torch.get_num_threads(),
        "seconds_per_step": rounds.median,
        "seconds_per_step_all": rounds.seconds,
        "pairs_per_s": batch / rounds.median,
        "gflop_per_pair": flops / batch / 1e9,
        "gflop_per_s_per_rank": rate / 1e9,
        "ceiling_gflop_per_s_per_rank": ceiling.flops / 1e9,
        "mfu": rate / ceiling.flops,
        "peak_rss_gb": peak_rss_gb(),
    }
