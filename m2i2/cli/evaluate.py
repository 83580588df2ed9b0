"""``launchers/evaluate.py``: ask a finetuned model the questions of a split and score its answers."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2i2.cli.settings import add_cache_options, cache_of
from m2i2.errors import M2I2Error
from m2i2.exits import guarded

if TYPE_CHECKING:
    from m2i2.config import FinetuningConfig
    from m2i2.data.loading.subset import SelectedSplit
    from m2i2.data.records import Question
    from m2i2.data.shards.split import ShardSplit
    from m2i2.data.shards.storage import Storage
    from m2i2.data.text.tokenizer import Tokenizer
    from m2i2.models.vqa import VQAModel

DESCRIPTION = """Ask a finetuned model every question of a split, score its answers under a protocol, and set the result beside
baselines that do not see the image. Writes results.json and predictions.jsonl."""

EXAMPLES = """examples:
  python launchers/evaluate.py --checkpoint runs/rad --shards shards/vqa_rad
  python launchers/evaluate.py --checkpoint runs/rad --shards shards/vqa_rad --mode rank-official --k 128
  python launchers/evaluate.py --checkpoint runs/rad --shards shards/vqa_rad --protocol clean --generate-too
  python launchers/evaluate.py --checkpoint official_vqa.pth --tokenizer bert-base-uncased --shards shards/vqa_rad
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
    add("settings", nargs="*", metavar="section.key=value", help="architecture of an official file that its shapes do not show")
    add("--checkpoint", type=Path, required=True, metavar="RUN", help="a finetuning run, a checkpoint of it, or an official .pth")
    add("--tokenizer", metavar="NAME", help="tokenizer of an official .pth: a name on the hub or a folder")
    add("--shards", required=True, metavar="DIR", help="question shards made by tools/make_shards.py, or the URL of such a folder")
    add("--split", default="test", help="which questions (%(default)s); clean also has 'selection', which chose the checkpoint")
    add("--output", type=Path, metavar="DIR", help="where to write (default: RUN/evaluation-SPLIT-MODE, -clean under clean)")
    add("--protocol", default="paper", help="whose rules: paper or clean (%(default)s); see docs/evaluation.md")
    add(
        "--mode",
        default="rank",
        choices=["rank", "rank-official", "generate"],
        help="rank every candidate exactly (%(default)s), the official top k, or write answers by beam search",
    )
    add("--generate-too", action="store_true", help="let beam search answer beside a ranking, and count how often they agree")
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
    return parser().parse_intermixed_args(argv)


def run(argv: Sequence[str] | None) -> int:
    """The command without its guard: errors go to the caller."""
    return _evaluate(parse(argv))


def _evaluate(arguments: argparse.Namespace) -> int:
    import time

    import torch

    from m2i2.backends.heap import keep_freed_memory
    from m2i2.data.shards.split import read_index
    from m2i2.data.shards.storage import storage_of
    from m2i2.evaluation.literature import differences_to_paper, literature
    from m2i2.evaluation.protocols import protocol
    from m2i2.evaluation.results import show, summarise, write_results
    from m2i2.inference.predictor import Evaluator, Method
    from m2i2.options import to_dict
    from m2i2.provenance import provenance
    from m2i2.training.processes import autocast_dtype

    keep_freed_memory()
    rules = protocol(arguments.protocol)
    model, tokenizer, config, checkpoint, trained = _model(arguments)
    shards = storage_of(arguments.shards, cache_of(arguments))
    asked, train, test, counts = _questions(arguments, shards, config.answering.selection)
    candidates = rules.candidates(train, test)
    normalisation = config.answering.normalisation
    method = Method(
        mode=arguments.mode, k=arguments.k, beams=arguments.beams, normalisation=normalisation, also_generate=arguments.generate_too
    )
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
        **({"candidate_tree": evaluator.reading()} if evaluator.nodes_read else {}),
        "split": arguments.split,
        "splits": counts,
        "trained": trained,
        "shards": {"folder": shards.place, "source": source, "fingerprint": asked.fingerprint},
        "checkpoint": str(checkpoint),
        "seconds_per_question": round(seconds / len(given), 4),
        "precision": str(dtype).removeprefix("torch."),
        "configuration": to_dict(config),
        **provenance(),
    }
    notes = [*rules.habits(source), *_cautions(rules.name, trained["protocol"])]
    if any(view["published"] for view in results["views"].values()):
        results["differs_from_published"] = differences_to_paper(results["configuration"])
        notes.append(f"Published rows: {literature()['source']}. What differs: {'; '.join(results['differs_from_published'])}.")
    folder = arguments.output or _run_of(checkpoint) / _folder_name(arguments)
    write_results(folder, results, given, normalisation)
    show(results)
    for note in notes:
        print(f"note: {note}")
    print(f"{len(given)} questions in {seconds:.0f} s; written to {folder}.")
    return 0


def _model(arguments: argparse.Namespace) -> "tuple[VQAModel, Tokenizer, FinetuningConfig, Path, dict[str, Any]]":
    """The model, its tokenizer and settings, the checkpoint they come from, and how it was trained."""
    from m2i2.config import FinetuningConfig
    from m2i2.data.text.tokenizer import load_tokenizer, require_same, require_size
    from m2i2.models.start import official_answering
    from m2i2.models.vqa import VQAModel
    from m2i2.models.weights import load, read_state
    from m2i2.options import override
    from m2i2.training.checkpoint import find_checkpoint, read_config

    checkpoint = find_checkpoint(arguments.checkpoint, best=True)
    if checkpoint.is_dir():
        if arguments.settings:
            raise M2I2Error(f"{checkpoint} stores its settings; {arguments.settings[0]} serves official files only.")
        config = read_config(FinetuningConfig, checkpoint)
        tokenizer = load_tokenizer(checkpoint / "tokenizer")
        if arguments.tokenizer:
            require_same(load_tokenizer(arguments.tokenizer), tokenizer, str(checkpoint))
        state = read_state(checkpoint / "model.safetensors")
        protocol = config.answering.protocol + (", with rewrites of test questions" if config.answering.rewrites else "")
        trained = {"protocol": protocol, "step": checkpoint.name, "chosen_by": _chosen_by(checkpoint)}
    else:
        if not arguments.tokenizer:
            raise M2I2Error(f"{checkpoint} carries no tokenizer; name the one it was trained with: --tokenizer bert-base-uncased.")
        tokenizer = load_tokenizer(arguments.tokenizer)
        state, vision, text = official_answering(checkpoint)
        config = override(FinetuningConfig(preset="official", vision=vision, text=text), arguments.settings)
        trained = {"protocol": "unknown (an official file)", "step": checkpoint.name, "chosen_by": "unknown"}
    require_size(tokenizer, config.text.vocabulary_size, str(checkpoint))
    model = VQAModel(config.vision, config.text)
    load(model, state, str(checkpoint))
    return model, tokenizer, config, checkpoint, trained


def _questions(
    arguments: argparse.Namespace, shards: "Storage", selection: float
) -> "tuple[ShardSplit | SelectedSplit, list[Question], list[Question], dict[str, Any]]":
    """What is asked, the training questions that the protocol knows, the test questions, and counts of all of them.

    Under ``clean`` the test questions are left empty: nothing may know them before the model has answered. There the split
    ``selection`` is what chose the checkpoint.
    """
    from m2i2.data.loading.clean import clean_parts
    from m2i2.data.shards.split import ShardSplit
    from m2i2.inference.predictor import questions_of

    if arguments.protocol == "clean":
        parts = clean_parts(shards, selection)
        by_name = arguments.split == "selection"
        asked = parts.selection if by_name else ShardSplit.open(shards, arguments.split, "vqa")
        train, test, counts = questions_of(parts.known), [], dict(parts.counts)
    else:
        asked = ShardSplit.open(shards, arguments.split, "vqa")
        train, test = (questions_of(ShardSplit.open(shards, name, "vqa")) for name in ("train", "test"))
        counts = {"training_questions": len(train), "test_questions": len(test)}
    if not len(asked):
        raise M2I2Error(f"The split {arguments.split!r} of {shards.place} holds no questions under {arguments.protocol}.")
    return asked, train, test, {**counts, "asked": len(asked)}


def _cautions(protocol: str, trained: str) -> list[str]:
    """What a reader must know where a model was not trained under the protocol that scores it."""
    if protocol == "clean" and trained != "clean":
        return [f"It was trained under {trained}: it may have seen rewrites of test questions, or been chosen by the test set."]
    return []


def _chosen_by(checkpoint: Path) -> str:
    from m2i2.training.checkpoint import Checkpoints

    return "selection" if Checkpoints(checkpoint.parent).best() == checkpoint else "none (a checkpoint by its step)"


def _folder_name(arguments: argparse.Namespace) -> str:
    protocol = "" if arguments.protocol == "paper" else f"-{arguments.protocol}"
    return f"evaluation-{arguments.split}-{arguments.mode}{protocol}"


def _run_of(checkpoint: Path) -> Path:
    if checkpoint.is_file():
        return checkpoint.with_suffix("")
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
