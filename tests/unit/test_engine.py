"""DeepSpeed configurations: ours filled in, conflicts refused; the built-in one is the file's."""

import json
from typing import Any

import pytest
import torch

from m2i2.data.loading.sampling import Share
from m2i2.errors import M2I2Error
from m2i2.training.deepspeed.engine import DEFAULT_CONFIG, complete_config, read_deepspeed_config
from tests.conftest import ROOT

SHARE = Share(batch=32, accumulation=2, rank=0, ranks=4)


def complete(**changes: Any) -> dict[str, Any]:
    return complete_config({**DEFAULT_CONFIG, **changes}, SHARE, 1.0, torch.bfloat16, "c.json")


def test_the_built_in_configuration_is_the_file() -> None:
    assert json.loads((ROOT / "ds_configs" / "zero2.json").read_text()) == DEFAULT_CONFIG


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.name)
def test_every_shipped_configuration_is_accepted(path: Any) -> None:
    complete_config(read_deepspeed_config(path), SHARE, 0.0, torch.float32, str(path))


def test_batch_and_precision_are_ours() -> None:
    config = complete(train_batch_size="auto", gradient_accumulation_steps=2)
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (32, 4)
    assert config["gradient_clipping"] == 1.0
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_batch_size": 64}, "sets train_batch_size=64, but training.batch=32 on 4 rank"),
        ({"gradient_clipping": 0.5}, "sets gradient_clipping=0.5"),
        ({"optimizer": {"type": "Adam"}}, "has a section 'optimizer'"),
        ({"bf16": {"enabled": True}}, "use training.precision instead"),
        ({"zero_optimization": {"stage": 3}}, "asks for ZeRO stage 3"),
        ({"zero_optimization": {}}, "asks for ZeRO stage None"),
    ],
)
def test_conflicts_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(M2I2Error, match=message):
        complete(**changes)
