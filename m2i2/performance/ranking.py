"""Ranking candidates: a whole batch of questions, images included, as the evaluator asks it."""

from typing import Any

import torch

from m2i2.config import FinetuningConfig
from m2i2.data.loader import pad_rows
from m2i2.data.transforms import normalise
from m2i2.evaluation.ranking import CandidateTree, log_likelihoods
from m2i2.memory import keep_freed_memory
from m2i2.models.vqa import VQAModel
from m2i2.performance.flops import image_flops, ranking_flops
from m2i2.performance.measuring import Ceiling, Rounds, peak_rss_gb, timed

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
) -> dict[str, Any]:
    """Median time of ranking every candidate for ``questions`` questions of ``tokens`` tokens about ``images`` images."""
    torch.manual_seed(0)
    model = VQAModel(config.vision, config.text).to(device).eval()
    keep_freed_memory()
    rows = drawn_candidates(config.text.vocabulary_size) if candidates is None else candidates
    tree = CandidateTree.build(rows).to(device)
    side = config.vision.image_size
    pixels = torch.randint(256, (images, 3, side, side), dtype=torch.uint8, device=device)
    ids, mask = (t.to(device) for t in pad_rows(torch.randint(config.text.vocabulary_size, (questions, tokens)).tolist(), 0))
    image_of = torch.arange(questions, device=device) % images

    def rank() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            states = model.encode_question(ids, mask, model.encode_image(normalise(pixels)), image_of)
            log_likelihoods(model.text_decoder, states, mask, tree).argmax(1)

    ceiling, timings = Ceiling(dtype, device), Rounds(1)
    for _ in range(rounds + 1):
        ceiling.sample()
        timings.add(timed(rank, device))
    whole = ranking_flops(config.vision, config.text, tokens, len(tree.ids))
    shared = image_flops(config.vision, config.text)
    flops = questions * (whole - shared) + images * shared
    return {
        "precision": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "questions": questions,
        "images": images,
        "candidates": len(rows),
        "tree_nodes": len(tree.ids),
        "seconds_per_question": timings.median / questions,
        "gflop_per_question": flops / questions / 1e9,
        "ceiling_gflop_per_s": ceiling.flops / 1e9,
        "mfu": flops / timings.median / ceiling.flops,
        "peak_rss_gb": peak_rss_gb(),
    }
