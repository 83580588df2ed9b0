"""``launchers/evaluate.py``: ask a finetuned model the questions of a split and score its answers."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m2i2.commands.guard import guarded
from m2i2.commands.settings import add_cache_options, cache_of

DESCRIPTION = """Ask a finetuned model every question of a split, score its answers under a protocol, and set the result beside
baselines that do not see the image. Writes results.json and predictions.jsonl."""

EXAMPLES = """examples:
  python launchers/evaluate.py --checkpoint runs/rad --shards shards/vqa_rad
  python launchers/evaluate.py --checkpoint runs/rad --shards shards/vqa_rad --mode rank-official --k 128
  python launchers/evaluate.py --checkpoint runs/slake --shards shards/slake --split val --mode generate
  python launchers/evaluate.py --checkpoint runs/rad --shards s3://bucket/vqa_rad --cache-folder /scratch/cache
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="evaluate.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--checkpoint", type=Path, required=True, metavar="RUN", help="a finetuning run, or a checkpoint of it")
    add("--shards", required=True, metavar="DIR", help="question shards made by tools/make_shards.py, or the URL of such a folder")
    add("--split", default="test", help="which questions (%(default)s)")
    add("--output", type=Path, metavar="DIR", help="where to write (default: RUN/evaluation-SPLIT-MODE)")
    add("--protocol", default="paper", help="whose rules: paper (%(default)s)")
    add(
        "--mode",
        default="rank",
        choices=["rank", "rank-official", "generate"],
        help="rank every candidate exactly (%(default)s), the official top k, or write answers by beam search",
    )
    add("--k", type=int, default=128, help="candidates that rank-official re-ranks (%(default)s)")
    add("--beams", type=int, default=3, help="beams of generate (%(default)s)")
    add("--batch", type=int, default=16, help="questions at a time (%(default)s)")
    add_cache_options(made)
    add("--precision", default="auto", choices=["auto", "bfloat16", "float32"], help="as in training (%(default)s)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    return guarded(lambda: _evaluate(arguments))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of a command line."""
    return parser().parse_args(argv)


def run(argv: Sequence[str] | None) -> int:
    """The command without its guard: errors go to the caller."""
    return _evaluate(parse(argv))


def _evaluate(arguments: argparse.Namespace) -> int:
    import time

    import torch

    from m2i2.config import FinetuningConfig
    from m2i2.data.shards import ShardSplit, read_index
    from m2i2.data.storage import storage_of
    from m2i2.data.tokenizer import load_tokenizer, require_size
    from m2i2.evaluation.evaluator import Evaluator, Method, questions_of
    from m2i2.evaluation.protocols import protocol
    from m2i2.evaluation.results import show, summarise, write_results
    from m2i2.memory import keep_freed_memory
    from m2i2.models.vqa import VQAModel
    from m2i2.models.weights import load, read_state
    from m2i2.options import to_dict
    from m2i2.training.checkpoint import find_checkpoint, read_config
    from m2i2.training.processes import autocast_dtype
    from m2i2.training.provenance import provenance

    keep_freed_memory()
    rules = protocol(arguments.protocol)
    checkpoint = find_checkpoint(arguments.checkpoint)
    config = read_config(FinetuningConfig, checkpoint)
    tokenizer = load_tokenizer(checkpoint / "tokenizer")
    require_size(tokenizer, config.text.vocabulary_size, str(checkpoint))
    model = VQAModel(config.vision, config.text)
    load(model, read_state(checkpoint / "model.safetensors"), str(checkpoint))

    shards = storage_of(arguments.shards, cache_of(arguments))
    asked = ShardSplit.open(shards, arguments.split, "vqa")
    train = questions_of(ShardSplit.open(shards, "train", "vqa"))
    test = questions_of(ShardSplit.open(shards, "test", "vqa"))
    candidates = rules.candidates(train, test)
    normalisation = config.answering.normalisation
    method = Method(mode=arguments.mode, k=arguments.k, beams=arguments.beams, normalisation=normalisation)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = autocast_dtype(arguments.precision, device)
    evaluator = Evaluator(model, tokenizer, candidates, method, device, dtype, arguments.batch)
    started = time.monotonic()
    given = list(evaluator.ask(asked))
    seconds = time.monotonic() - started

    source = str(read_index(shards)["source"])
    results = {
        **summarise(given, train, rules, candidates, source, normalisation),
        "method": vars(method),
        "split": arguments.split,
        "shards": {"folder": shards.place, "source": source, "fingerprint": asked.fingerprint},
        "checkpoint": str(checkpoint),
        "seconds_per_question": round(seconds / len(given), 4),
        "precision": str(dtype).removeprefix("torch."),
        "configuration": to_dict(config),
        **provenance(),
    }
    folder = arguments.output or _run_of(checkpoint) / f"evaluation-{arguments.split}-{arguments.mode}"
    write_results(folder, results, given, normalisation)
    show(results)
    for habit in rules.habits(source):
        print(f"note: {habit}")
    print(f"{len(given)} questions in {seconds:.0f} s; written to {folder}.")
    return 0


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
