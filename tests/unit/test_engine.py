"""DeepSpeed configurations: ours filled in, conflicts refused; the built-in one is the file's."""

import json
from typing import Any

import pytest

from m2i2.data.loading.sampling import Share
from m2i2.errors import M2I2Error
from m2i2.training.deepspeed.configuration import DEFAULT_CONFIG, Partitioning, complete_config, read_deepspeed_config
from m2i2.training.engines import choose
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


OFFLOADED = {"stage": 2, "offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("wanted", "ranks", "changes", "chosen"),
    [
        ("auto", 1, {}, "local"),
        ("auto", 2, {}, "zero"),
        ("flat", 2, {"zero_optimization": {"stage": 1}, "communication_data_type": "fp32"}, "zero"),
        ("auto", 1, {"zero_optimization": OFFLOADED}, "deepspeed"),
        ("auto", 2, {"communication_data_type": "bf16"}, "deepspeed"),
        ("auto", 1, {"comms_logger": {"enabled": True}}, "local"),
        ("deepspeed", 1, {}, "deepspeed"),
    ],
)
def test_the_engine_is_that_which_does_what_is_asked(wanted: str, ranks: int, changes: dict[str, Any], chosen: str) -> None:
    assert choose(wanted, complete(**changes), "c.json", ranks, scaled=False) == chosen


def test_engines_that_cannot_do_what_is_asked_are_refused() -> None:
    with pytest.raises(M2I2Error, match=r"c\.json asks for prescale_gradients, which only DeepSpeed's own engine does"):
        choose("flat", complete(prescale_gradients=True), "c.json", 2, scaled=False)
    for wanted, changes in (("deepspeed", {}), ("auto", {"zero_optimization": OFFLOADED})):
        with pytest.raises(M2I2Error, match="float16 needs a loss scale"):
            choose(wanted, complete(**changes), "c.json", 2, scaled=True)
    assert choose("auto", complete(), "c.json", 2, scaled=True) == "zero"


def test_what_the_file_leaves_out_is_deepspeeds() -> None:
    assert Partitioning.of(complete()) == Partitioning(2, 8_000_000, 50_000_000, True)
    assert Partitioning.of(complete(zero_optimization={"stage": 1, "reduce_scatter": False})) == Partitioning(
        1, 500_000_000, 500_000_000, False
    )


PLACE = "/tmp/elsewhere"
WRITING: dict[str, object] = {
    "flops_profiler": {"enabled": True, "output_file": PLACE},
    "csv_monitor": {"enabled": True, "output_path": PLACE, "job_name": "x"},
    "tensorboard": {"enabled": True, "output_path": PLACE},
    "wandb": {"enabled": True},
    "comet": {"enabled": True},
    "autotuning": {"enabled": True, "results_dir": PLACE, "exps_dir": PLACE},
    "data_efficiency": {"data_sampling": {"curriculum_learning": {"data_cluster_path": PLACE}}},
    "curriculum_learning": {"enabled": True},
    "nebula": {"enabled": True, "persistent_storage_path": PLACE},
    "datastates_ckpt": {"host_cache_size": 16},
    "checkpoint": {"load_universal": True, "parallel_write": {"pipeline_stage": True}},
    "checkpoint_engine": {"type": "fast"},
    "aio": {"block_size": 1048576},
    "elasticity": {"enabled": True},
    "hybrid_engine": {"enabled": True},
    "compression_training": {},
}
"""Sections with which DeepSpeed writes files, sends data elsewhere, or starts more than training."""


@pytest.mark.parametrize("section", WRITING)
def test_sections_that_write_files_are_refused(section: str) -> None:
    with pytest.raises(M2I2Error, match=f"c.json has a (section|key) '{section}'"):
        complete(**{section: WRITING[section]})


@pytest.mark.parametrize(("key", "message"), [("offload_optimizer", "what is supported is"), ("offload_param", "is not supported")])
def test_optimizer_states_are_not_written_to_a_disk(key: str, message: str) -> None:
    with pytest.raises(M2I2Error, match=message):
        complete(zero_optimization={"stage": 2, key: {"device": "nvme", "nvme_path": PLACE}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps_per_print": "often"}, "steps_per_print='often' must be a whole number"),
        ({"steps_per_print": 1e300}, "must be a whole number"),
        ({"wall_clock_breakdown": PLACE}, "must be true or false"),
        ({"dump_state": 1}, "must be true or false"),
        ({"communication_data_type": ["fp16"]}, "must be fp32, fp16 or bf16"),
        ({"gradient_predivide_factor": 0}, "must be a number"),
        ({"comms_logger": PLACE}, "must be an object"),
        ({"comms_logger": {"output_path": PLACE}}, r"comms_logger\.'output_path' that is not supported"),
        ({"comms_logger": {"prof_ops": [1]}}, "must be a list of names"),
        ({"zero_optimization": {"stage": True}}, "ZeRO stage True"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}, "must be a whole number"),
        ({"zero_optimization": {"stage": 2, "overlap_comm": {}}}, "must be true or false"),
    ],
)
def test_values_are_of_the_kind_that_deepspeed_takes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(M2I2Error, match=message):
        complete(**changes)
    complete(zero_optimization={"stage": 1, "reduce_bucket_size": 5e8}, comms_logger={"enabled": True, "prof_ops": ["all_reduce"]})
