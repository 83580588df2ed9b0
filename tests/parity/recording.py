"""A folder of numbers laid out like the official ones, taken from our own code, at any sizes: to test the command with."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.parity.fixture import sizes
from tests.parity.steps import answering_step, initial_states, pretraining_step


def record(folder: Path, told: Mapping[str, Any], batch: int, tokens: int, pointer: int, answering_side: int, k: int) -> None:
    """Write model.json with ``told``, random weights and inputs, and what our code makes of them."""
    torch.manual_seed(0)
    (folder / "model.json").write_text(json.dumps(told))
    side, patches = told["image_size"], (told["image_size"] // told["patch_size"]) ** 2
    ids = torch.randint(103, told["vocabulary"], (batch, tokens))
    chosen = torch.rand(batch, tokens) < 0.3
    chosen[:, 1] = True
    inputs = {
        "image": torch.randn(batch, 3, side, side, dtype=torch.float64),
        "input_ids": ids,
        "attention_mask": (torch.arange(tokens) < torch.arange(tokens, tokens - batch, -1)[:, None]).long(),
        "mlm_input_ids": ids.masked_fill(chosen, 103),
        "mlm_labels": ids.masked_fill(~chosen, -100),
        "mim_noise_student": torch.rand(batch, patches, dtype=torch.float64),
        "mim_noise_teacher": torch.rand(batch, patches, dtype=torch.float64),
        "negative_image_for_text": torch.arange(batch).roll(1),
        "negative_text_for_image": torch.arange(batch).roll(-1),
    }
    questions = {
        "image": torch.randn(2, 3, answering_side, answering_side, dtype=torch.float64),
        "question_ids": ids[:2],
        "question_mask": inputs["attention_mask"][:2],
        "candidate_ids": torch.tensor([[101, 110, 102, 102], [101, 111, 112, 102], [101, 113, 102, 102]]),
        "candidate_mask": torch.ones(3, 4, dtype=torch.long),
        "target_candidate": torch.tensor([2, 0]),
    }
    _save(folder, "pretrain_inputs", inputs)
    _save(folder, "vqa_inputs", questions)
    # until there are outputs and VQA weights, the sizes are those that model.json gives
    state, answering = initial_states(told, answering_side)
    queue = torch.nn.functional.normalize(torch.randn(2, told["projection"], told["queue"], dtype=torch.float64), dim=1)
    state |= {"image_queue": queue[0], "text_queue": queue[1], "queue_ptr": torch.tensor([pointer])}
    _save(folder, "pretrain_state_dict", state)
    _save(folder, "vqa_state_dict", answering)
    _save(folder, "vqa_outputs", {"rank_topk_ids": torch.zeros(2, k, dtype=torch.long)})
    assert replace(sizes(folder).vision, image_size=side).patches == patches
    _save(folder, "pretrain_outputs", pretraining_step(folder))
    found = answering_step(folder)
    _save(folder, "vqa_outputs", {name: tensor for name, tensor in found.items() if not name.startswith("start.")})


def _save(folder: Path, name: str, found: Mapping[str, Tensor]) -> None:
    save_file({key: tensor.detach().clone().contiguous() for key, tensor in found.items()}, folder / f"{name}.safetensors")
