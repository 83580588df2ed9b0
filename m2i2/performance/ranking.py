"""Ranking candidates: a whole batch of questions, images included, as the evaluator asks it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2i2.backends.choice import install
from m2i2.backends.heap import keep_freed_memory
from m2i2.config import FinetuningConfig
from m2i2.data.images.transforms import normalise
from m2i2.data.loading.padding import pad_rows
from m2i2.inference.predictor import TOP
from m2i2.inference.ranking import Best, CandidateTree, likeliest
from m2i2.models.flops import image_flops, ranking_flops
from m2i2.models.vqa import VQAModel
from m2i2.performance.measuring import Ceiling, Rounds, peak_memory_gb, timed
from m2i2.performance.tracing import profile_steps
from m2i2.precision import autocast

LENGTHS = (2,) * 187 + (3,) * 130 + (4,) * 70 + (5,) * 50 + (7,) * 50 + (10,) * 30
"""Tokens between [CLS] and [SEP] [SEP] of the drawn candidates: 517, about as long as VQA-RAD's answers."""


def drawn_candidates(words: int) -> list[list[int]]:
    """517 candidates whose first tokens are shared by about three of them."""
    generator = torch.Generator().manual_seed(0)
    firsts = torch.randint(words, (len(LENGTHS) // 3,), generator=generator)
    rows = []
    for number, length in enumerate(LENGTHS):
        rest = torch.randint(words, (length - 1,), generator=generator).tolist()
        rows.append([101 % words, int(firsts[number % len(firsts)]), *rest, 102 % words, 102 % words])
    return rows


def prior(candidates: list[list[int]], words: int) -> Tensor:
    """log of how often each token stands in answers whose frequency falls as 1 / rank, [words].

    As the vocabulary head's bias it makes of random weights a model that is as unsure as one that has learnt nothing but which
    answers are frequent: what every trained model knows, and most are surer.
    """
    counts = torch.full((words,), 1e-6)
    for rank, tokens in enumerate(candidates, 1):
        counts.index_add_(0, torch.tensor(tokens[1:]), torch.full((len(tokens) - 1,), 1 / rank))
    return (counts / counts.sum()).log()


@torch.inference_mode()
def time_ranking(
    config: FinetuningConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    questions: int,
    images: int,
    tokens: int,
    rounds: int,
    candidates: list[list[int]] | None = None,
    trace: Path | None = None,
) -> dict[str, Any]:
    """Median time of finding the likeliest of all candidates for ``questions`` questions of ``tokens`` tokens about ``images``
    images, by a model that knows `prior` and by one that knows nothing, for which nearly the whole tree has to be read.

    ``trace``: a folder for the trace of a few rounds more, of the model that knows `prior`.
    """
    install(device)
    torch.manual_seed(0)
    model = VQAModel(config.vision, config.text).to(device).eval()
    keep_freed_memory()
    rows = drawn_candidates(config.text.vocabulary_size) if candidates is None else candidates
    tree = CandidateTree.build(rows).to(device)
    biases = {"": prior(rows, config.text.vocabulary_size), "_untrained": torch.zeros(config.text.vocabulary_size)}
    side = config.vision.image_size
    pixels = torch.randint(256, (images, 3, side, side), dtype=torch.uint8, device=device)
    ids, mask = (t.to(device) for t in pad_rows(torch.randint(config.text.vocabulary_size, (questions, tokens)).tolist(), 0))
    image_of = torch.arange(questions, device=device) % images

    def rank() -> Best:
        with autocast(device, dtype):
            states = model.encode_question(ids, mask, model.encode_image(normalise(pixels)), image_of)
            return likeliest(model.text_decoder, states, mask, tree, TOP)

    ceiling, timings = Ceiling(dtype, device), {kind: Rounds(1) for kind in biases}
    for _ in range(rounds + 1):
        ceiling.between_steps()
        for kind, bias in biases.items():
            model.text_decoder.cls.predictions.bias.copy_(bias)
            timings[kind].add(timed(rank, device))
    found: dict[str, Any] = {}
    memory = peak_memory_gb(device)
    shared = image_flops(config.vision, config.text)
    for kind, bias in biases.items():
        model.text_decoder.cls.predictions.bias.copy_(bias)
        read = float(rank().read.float().mean())
        flops = questions * (ranking_flops(config.vision, config.text, tokens, read) - shared) + images * shared
        seconds = timings[kind].median
        found |= {
            f"seconds_per_question{kind}": seconds / questions,
            f"nodes_read{kind}": read,
            f"gflop_per_question{kind}": flops / questions / 1e9,
            f"mfu{kind}": flops / seconds / ceiling.flops,
        }
    model.text_decoder.cls.predictions.bias.copy_(biases[""])
    profiled = profile_steps(rank, trace, device) if trace else {}
    return {
        "precision": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "questions": questions,
        "images": images,
        "question_tokens": tokens,
        "candidates": len(rows),
        "tree_nodes": len(tree.ids),
        **found,
        "ceiling_gflop_per_s": ceiling.flops / 1e9,
        **memory,
        **profiled,
    }
