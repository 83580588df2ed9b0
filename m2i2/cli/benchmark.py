"""``tools/benchmark.py``: how fast every stage runs on this machine, beside what the machine can do."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from m2i2.exits import guarded
from m2i2.options import override
from m2i2.presets import PRESETS, preset
from m2i2.terminal import say

DESCRIPTION = """Measure a stage: warm-up rounds, then the median of several, beside the machine's ceiling in the same run.

MFU is the useful work (multiplications and additions that the mathematics needs, m2i2/models/flops.py) a second, over
the best rate of F.linear in the same precision and with the same threads; on a GPU, over large products timed by events.
Memory: device_reserved_gb is what PyTorch's allocator took of the GPU, host_peak_rss_gb is the process's resident memory."""

EXAMPLES = """examples:
  python tools/benchmark.py pretrain --preset paper --batch 8
  python tools/benchmark.py pretrain --preset paper --batch 8 training.precision=float32
  deepspeed --num_gpus 2 tools/benchmark.py pretrain --preset paper --batch 8
  python tools/benchmark.py finetune --preset paper --batch 8 --json | tail -1
  python tools/benchmark.py ranking training.precision=float32
  python tools/benchmark.py pretrain --preset paper --batch 32 --steps 20 --profile findings/trace
  python tools/benchmark.py pretrain --preset paper --batch 32 --steps 20 --record docs/results/speed.csv
  python tools/benchmark.py table docs/results/speed.csv
  python tools/benchmark.py engine --preset paper --batch 32
  deepspeed --num_gpus 2 tools/benchmark.py engine --parameters 700 --also flat:ds_configs/zero1.json
  python tools/benchmark.py fed --shards shards/rocov2 --preset paper --batch 256 data.workers=8
  python tools/benchmark.py data rocov2 data/rocov2
  python tools/benchmark.py shards rocov2 data/rocov2
  python tools/benchmark.py scaling --preset paper --batch 8
  python tools/benchmark.py growth
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="benchmark.py", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw)
    top.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = top.add_subparsers(dest="command", required=True, metavar="STAGE")

    def stage(name: str, about: str) -> Callable[..., argparse.Action]:
        one = commands.add_parser(name, help=about, description=about, formatter_class=raw)
        one.add_argument("--json", action="store_true", help="end with one line that is one JSON object")
        return one.add_argument

    _add_training(stage)
    _add_ranking(stage)
    for name, about in (("data", "decoding and augmentation on one core"), ("shards", "make_shards, 2 workers over 1")):
        add = stage(name, about)
        add("source", metavar="SOURCE", nargs="?", default="phantoms", help="caption data, as make_shards names it (%(default)s)")
        add("path", metavar="PATH", nargs="?", type=Path, help="where it lies")
        add("--side", type=int, default=288, help="shorter side of stored images (%(default)s)")
        add("--size", type=int, default=256, help="side of augmented images (%(default)s)")
        add("--rounds", type=int, default=3, help="measured rounds (%(default)s)")
    add = stage("scaling", "2 ranks with 1 thread each over 1 rank with 2, the same global batch")
    add("settings", nargs="*", metavar="section.key=value", help="settings to change")
    add("--preset", choices=list(PRESETS), default="paper", help="model and objectives (%(default)s)")
    add("--batch", type=int, default=8, help="global batch (%(default)s)")
    add("--steps", type=int, default=3, help="measured steps of a run (%(default)s)")
    add("--rounds", type=int, default=1, help="runs of each kind (%(default)s)")
    stage("growth", "the contrast against queues to 1,048,576 and global batches to 65,536, the order against 10^8 samples")
    table = commands.add_parser("table", help="Markdown tables of measured rows, those of GPUs first")
    table.add_argument("file", metavar="FILE", type=Path, help="what --record has written")
    table.add_argument("--into", metavar="PAGE", type=Path, help="put them between the marks of this page instead of printing them")
    return top


Stage = Callable[[str, str], Callable[..., argparse.Action]]


def _add_training(stage: Stage) -> None:
    """Those that time optimizer steps."""
    for name, about in (
        ("pretrain", "a pretraining step under DeepSpeed"),
        ("finetune", "a VQA finetuning step under DeepSpeed"),
        ("engine", "a pretraining step by the engine, and by DeepSpeed's own, over the same step in plain PyTorch"),
        ("fed", "pretraining from shards through the loader over the same batches from memory"),
    ):
        add = stage(name, about)
        if name == "fed":
            add("--shards", metavar="DIR", type=Path, required=True, help="caption shards of tools/make_shards.py")
        add("settings", nargs="*", metavar="section.key=value", help="settings to change")
        add("--preset", choices=list(PRESETS), default="paper", help="model and objectives (%(default)s)")
        add("--batch", type=int, default=8, help="global batch (%(default)s)")
        add("--steps", type=int, default=5, help="measured steps (%(default)s)")
        add("--warm-up", type=int, default=2, metavar="STEPS", help="steps before them (%(default)s)")
        add("--threads", type=int, help="threads of each rank (default: the cores shared out)")
        add("--deepspeed_config", type=Path, metavar="FILE", help="DeepSpeed configuration (default: ZeRO-2)")
        if name == "engine":
            add(
                "--parameters",
                type=int,
                metavar="N",
                help="in place of the model: N small ones; the host's time alone",
            )
            add("--also", metavar="ENGINE:FILE", action="append", default=[], help="flat or deepspeed, and a configuration for it")
        if name in ("pretrain", "engine"):
            add("--tokens", type=int, default=25, help="length of the captions (%(default)s)")
        if name == "finetune":
            add("--question", type=int, default=16, help="length of the questions, tokens (%(default)s)")
            add("--answer", type=int, default=8, help="length of the answers, tokens (%(default)s)")
        if name in ("pretrain", "finetune"):
            _add_writing(add)


def _add_ranking(stage: Stage) -> None:
    add = stage("ranking", "the likeliest of 517 candidates, as many as VQA-RAD has, exactly, images included")
    add("settings", nargs="*", metavar="section.key=value", help="settings to change")
    add("--preset", choices=list(PRESETS), default="paper", help="model (%(default)s)")
    add("--questions", type=int, default=16, help="asked together (%(default)s)")
    add("--images", type=int, default=8, help="that they are about; VQA-RAD's test set has 2.2 questions an image (%(default)s)")
    add("--tokens", type=int, default=16, help="length of the questions (%(default)s)")
    add("--rounds", type=int, default=3, help="measured rounds (%(default)s)")
    add("--threads", type=int, help="threads (default: all cores)")
    _add_writing(add)


def _add_writing(add: Callable[..., argparse.Action]) -> None:
    add("--profile", type=Path, metavar="DIR", help="then profile 3 steps: DIR/trace.json.gz, a table, and counts per step")
    add("--record", type=Path, metavar="FILE", help="add the result to this CSV file, such as docs/results/speed.csv")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parser().parse_args(argv)
    return guarded(lambda: _measure(arguments))


def _measure(arguments: argparse.Namespace) -> int:
    stages: dict[str, Callable[[argparse.Namespace], dict[str, Any] | None]] = {
        **dict.fromkeys(("pretrain", "finetune", "engine", "fed"), _train),
        "ranking": _rank,
        "data": _data,
        "shards": _data,
        "scaling": _scale,
        "growth": _grow,
    }
    if arguments.command == "table":
        return _tables(arguments)
    record = getattr(arguments, "record", None)
    if record:
        from m2i2.performance import records

        records.check(record)
    found = stages[arguments.command](arguments)
    if found is None:
        return 0
    width = max(map(len, found))
    for name, value in found.items():
        say(f"{name:<{width}}  {_text(value)}")
    if record:
        records.append(record, records.record_of(arguments.command, found))
    if arguments.json:
        say(json.dumps({"stage": arguments.command, **found}))
    return 0


def _tables(arguments: argparse.Namespace) -> int:
    from m2i2.performance.records import into_page, read, tables

    text = tables(read(arguments.file))
    if arguments.into:
        into_page(arguments.into, text)
    else:
        say(text)
    return 0


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_text(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _train(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """A training step; None on ranks other than the first."""
    if arguments.threads:
        os.environ["M2I2_THREADS"] = str(arguments.threads)

    from m2i2.performance.engine import time_engine
    from m2i2.performance.fed import time_feeding
    from m2i2.performance.many import time_many_parameters
    from m2i2.performance.training import Timing, time_finetuning, time_pretraining
    from m2i2.training.processes import leave
    from m2i2.training.runtime import Runtime

    given, (pretraining, finetuning) = arguments, preset(arguments.preset)
    timing = Timing(steps=given.steps, warm_up=given.warm_up, trace=getattr(given, "profile", None))
    if given.command == "finetune":
        questions = override(finetuning, given.settings)
        runtime = Runtime.start(questions.training, given.deepspeed_config)
        lengths = {"question": given.question, "answer": given.answer}
        found = time_finetuning(questions, runtime, timing, batch=given.batch, **lengths)
    else:
        config = override(pretraining, given.settings)
        runtime = Runtime.start(config.training, given.deepspeed_config)
        if given.command == "fed":
            found = time_feeding(config, runtime, timing, shards=given.shards, batch=given.batch)
        else:
            sizes = {"batch": given.batch, "tokens": given.tokens}
            if given.command == "engine" and given.parameters:
                found = time_many_parameters(runtime, timing, parameters=given.parameters, also=given.also)
            elif given.command == "engine":
                found = time_engine(config, runtime, timing, **sizes, also=given.also)
            else:
                found = time_pretraining(config, runtime, timing, **sizes)
    leave()
    return found if runtime.process.first else None


def _rank(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from m2i2.performance.ranking import time_ranking
    from m2i2.precision import autocast_dtype

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = override(preset(arguments.preset)[1], arguments.settings)
    dtype = autocast_dtype(config.training.precision, device)
    counts = {name: getattr(arguments, name) for name in ("questions", "images", "tokens", "rounds")}
    return {"preset": arguments.preset, **time_ranking(config, device, dtype, trace=arguments.profile, **counts)}


def _data(arguments: argparse.Namespace) -> dict[str, Any]:
    from m2i2.data.sources import open_source
    from m2i2.performance.pipeline import time_augmentation, time_building

    opening = lambda: open_source("captions", arguments.source, arguments.path)  # noqa: E731
    if arguments.command == "data":
        found = time_augmentation(opening, {}, arguments.size, arguments.side, arguments.rounds)
    else:
        found = time_building(opening, {}, arguments.side, arguments.rounds)
    return {"source": arguments.source, **found}


def _scale(arguments: argparse.Namespace) -> dict[str, Any]:
    from m2i2.performance.scaling import time_scaling

    return time_scaling(arguments.preset, arguments.batch, arguments.steps, arguments.rounds, arguments.settings)


def _grow(arguments: argparse.Namespace) -> dict[str, Any]:
    from m2i2.performance.global_batch import growth_of_batch
    from m2i2.performance.pipeline import growth_of_index, growth_of_queue

    found: dict[str, Any] = {"contrast_ms_by_queue": growth_of_queue((4_096, 65_536, 1_048_576))}
    batches = growth_of_batch((32, 256, 2_048, 16_384, 65_536))
    found |= {f"global_batch_{size}": row for size, row in batches.items()}
    for samples, shards in ((1_000, 10), (1_000_000, 1_000), (100_000_000, 100_000)):
        found[f"index_{samples}"] = growth_of_index(samples, shards)
    return found
