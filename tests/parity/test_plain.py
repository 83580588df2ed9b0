"""The computation written out in `plain` is the official one, to 1e-9: what it says of models of other sizes can be relied on."""

import json
from pathlib import Path

from tests.parity.comparison import EXACT, differences
from tests.parity.fixture import tensors
from tests.parity.plain import answering, pretraining


def test_the_pretraining_step(parity_folder: Path) -> None:
    told, official = json.loads((parity_folder / "model.json").read_text()), tensors(parity_folder, "pretrain_outputs")
    found = pretraining(told, tensors(parity_folder, "pretrain_state_dict"), tensors(parity_folder, "pretrain_inputs"))
    compared = differences(found, official)
    assert max(compared.values()) < EXACT, max(compared, key=lambda name: compared[name])
    assert {name for name in found if name.startswith("grad.")} == {name for name in official if name.startswith("grad.")}


def test_answering(parity_folder: Path) -> None:
    told, official = json.loads((parity_folder / "model.json").read_text()), tensors(parity_folder, "vqa_outputs")
    states = (tensors(parity_folder, f"{name}_state_dict") for name in ("pretrain", "vqa"))
    inputs, k = tensors(parity_folder, "vqa_inputs"), official["rank_topk_ids"].shape[1]
    compared = differences(answering(told, *states, inputs, k), official)
    assert max(compared.values()) < EXACT, max(compared, key=lambda name: compared[name])
