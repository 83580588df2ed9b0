"""DeepSpeed configurations: ours filled in, conflicts refused; the built-in one is the file's."""

import json
from typing import Any

import pytest

from m2i2.data.loading.sampling import Share
from m2i2.errors import M2I2Error
from m2i2.training.deepspeed.configuration import DEFAULT_CONFIG, complete_config, read_deepspeed_config
from tests.conftest import ROOT

SHARE = Share(batch=32, accumulation=2, rank=0, ranks=4)


def complete(**changes: Any) -> dict[str, Any]:
    return complete_config({**DEFAULT_CONFIG, **changes}, SHARE, 1.0, "c.json")


def test_the_built_in_configuration_is_the_file() -> None:
    assert json.loads((ROOT / "ds_configs" / "zero2.json").read_text()) == DEFAULT_CONFIG


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.name)
def test_every_shipped_configuration_is_accepted(path: Any) -> None:
    complete_config(read_deepspeed_config(path), SHARE, 0.0, str(path))


def test_the_batch_and_the_clipping_are_ours() -> None:
    config = complete(train_batch_size="auto", gradient_accumulation_steps=2)
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (32, 4)
    assert config["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_batch_size": 64}, "sets train_batch_size=64, but training.batch=32 on 4 rank"),
        ({"gradient_clipping": 0.5}, "sets gradient_clipping=0.5"),
        ({"optimizer": {"type": "Adam"}}, "has a section 'optimizer'"),
        ({"bf16": {"enabled": True}}, "use training.precision instead"),
        ({"zero_optimization": {"stage": 3}}, "asks for ZeRO stage 3"),
        ({"zero_optimization": {}}, "asks for ZeRO stage None"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, "offload_optimizer="),
        ({"zero_optimization": {"stage": 2, "reduce_bucket": 5}}, "Did you mean zero_optimization.reduce_bucket_size"),
        ({"zero_optimisation": {"stage": 2}}, "Did you mean zero_optimization"),
        ({"zero_optimization": 2}, "must be an object"),
        ({"flops_profiler": {"enabled": True}}, "use tools/benchmark.py instead"),
        ({"something_else": 1}, "has a key 'something_else' that is not supported. The keys here are"),
    ],
)
def test_conflicts_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(M2I2Error, match=message):
        complete(**changes)
