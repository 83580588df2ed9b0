"""Training steps timed under DeepSpeed: the launcher's own task and engine on drawn batches of fixed lengths."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from m2i2.backends.heap import keep_freed_memory
from m2i2.backends.kernels import install
from m2i2.config import FinetuningConfig, PretrainingConfig
from m2i2.data.loading.batch import Batch, CaptionBatch, QuestionBatch
from m2i2.data.loading.sampling import Share
from m2i2.models.flops import finetuning_flops, pretraining_flops
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.vqa import VQAModel
from m2i2.performance.measuring import Ceiling, Rounds, peak_rss_gb, timed
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.vqa import FinetuningTask
from m2i2.training.deepspeed.engine import complete_config, start_engine
from m2i2.training.optimizer import adamw
from m2i2.training.processes import Process, autocast_dtype
from m2i2.training.trainer import Task

WARM_UP = 2
_MIDDLE = 500
"""Number of the first step within an epoch of 1,000: the share of soft targets is half its full value, as nothing is at 0."""


def drawn_captions(config: PretrainingConfig, rows: int, tokens: int) -> CaptionBatch:
    """A batch of random pixels and words, every caption ``tokens`` long; 15 % of the words are asked for."""
    vision, words = config.vision, config.text.vocabulary_size
    ids = torch.randint(words, (rows, tokens))
    asked = torch.zeros(rows * (tokens - 1), dtype=torch.bool)
    asked[torch.randperm(len(asked))[: round(config.objectives.text_mask_ratio * len(asked))]] = True
    chosen = torch.cat([torch.zeros(rows, 1, dtype=torch.bool), asked.view(rows, -1)], dim=1)
    return CaptionBatch(
        image=torch.randint(256, (rows, 3, vision.image_size, vision.image_size), dtype=torch.uint8),
        item=torch.arange(rows),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        masked_input_ids=torch.where(chosen, torch.randint_like(ids, words), ids),
        labels=torch.where(chosen, ids, -100),
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


def time_pretraining(
    config: PretrainingConfig, deepspeed_config: dict[str, Any], process: Process, *, batch: int, tokens: int, steps: int
) -> dict[str, Any]:
    """Median optimizer step at a global ``batch`` of captions ``tokens`` long. Collective."""
    config = replace(config, training=replace(config.training, batch=batch, accumulation=1))
    dtype = autocast_dtype(config.training.precision, process.device)
    torch.manual_seed(config.training.seed)
    task = PretrainingTask(PretrainingModel(config.vision, config.text, config.objectives), config, process, dtype, 0)
    flops = sum(pretraining_flops(config, tokens, batch).values()) * batch
    draw = lambda: drawn_captions(config, batch // process.ranks, tokens)  # noqa: E731
    return {"tokens": tokens, **_time_steps(task, config, deepspeed_config, process, dtype, draw, flops, steps)}


def time_finetuning(
    config: FinetuningConfig,
    deepspeed_config: dict[str, Any],
    process: Process,
    *,
    batch: int,
    question: int,
    answer: int,
    steps: int,
) -> dict[str, Any]:
    """Median optimizer step at a global ``batch`` of questions, lengths in tokens. Collective."""
    config = replace(config, training=replace(config.training, batch=batch, accumulation=1))
    dtype = autocast_dtype(config.training.precision, process.device)
    torch.manual_seed(config.training.seed)
    task = FinetuningTask(VQAModel(config.vision, config.text), config, process, dtype)
    flops = sum(finetuning_flops(config, question, answer).values()) * batch
    draw = lambda: drawn_questions(config, batch // process.ranks, question, answer)  # noqa: E731
    found = _time_steps(task, config, deepspeed_config, process, dtype, draw, flops, steps)
    return {"question_tokens": question, "answer_tokens": answer, **found}


def _time_steps(
    task: Task,
    config: PretrainingConfig | FinetuningConfig,
    deepspeed_config: dict[str, Any],
    process: Process,
    dtype: torch.dtype,
    draw: Callable[[], Batch],
    flops: float,
    steps: int,
) -> dict[str, Any]:
    batch = config.training.batch
    share = Share(batch, 1, process.rank, process.ranks)
    kernels = install((task.student, *task.beside.values()), config.training, process.device)
    engine = start_engine(
        task.student.to(process.device),
        adamw(task.student, config.optimizer, kernels),
        complete_config(deepspeed_config, share, config.optimizer.clip, dtype, "the DeepSpeed configuration"),
    )
    for module in task.beside.values():
        module.to(process.device)
    ceiling, rounds = Ceiling(dtype, process.device), Rounds(WARM_UP)

    def step(number: int, drawn: Batch) -> None:
        task.begin_step(_MIDDLE + number, 2 * _MIDDLE)
        engine.backward(task.losses(engine, drawn, _MIDDLE + number, 0)["loss"])
        engine.step()
        keep_freed_memory()
        task.end_step()

    for number in range(WARM_UP + steps):
        drawn = draw().to(process.device)
        if number >= WARM_UP:
            ceiling.sample()
        dist.barrier()  # no rank's step begins while another one still measures its ceiling
        rounds.add(timed(lambda: step(number, drawn), process.device))  # noqa: B023
    rate = flops / process.ranks / rounds.median
    return {
        "preset": config.preset,
        "kernels": kernels.kernel,
        "precision": str(dtype).removeprefix("torch."),
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
