"""Evaluation, from a finetuned model to its scores."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2i2.backends.heap import keep_freed_memory
from m2i2.config import CacheConfig
from m2i2.data.loading.clean import clean_parts
from m2i2.data.loading.subset import SelectedSplit, questions_of, spread
from m2i2.data.records import Question
from m2i2.data.shards.opening import storage_of
from m2i2.data.shards.split import ShardSplit, read_index
from m2i2.data.shards.storage import Storage
from m2i2.data.text.fit import misfit
from m2i2.errors import M2I2Error
from m2i2.evaluation.calibration import calibration
from m2i2.evaluation.dependence import CONDITIONS, certificate, sentence
from m2i2.evaluation.literature import differences_to_paper, literature
from m2i2.evaluation.protocols import protocol
from m2i2.evaluation.reach import Writing, answers_in_reach, remarks
from m2i2.evaluation.results import show, summarise, write_results
from m2i2.inference.predictor import Method, Prediction, Predictor
from m2i2.inference.substitution import blank, noise, shuffled
from m2i2.options import to_dict
from m2i2.precision import autocast_dtype
from m2i2.provenance import provenance
from m2i2.terminal import say
from m2i2.workflows.answering import Loaded


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked, and how."""

    shards: str
    """A folder of question shards, or its URL."""
    split: str = "test"
    protocol: str = "paper"
    mode: str = "rank"
    """rank, rank-official or generate."""
    k: int = 128
    """Candidates that rank-official re-ranks."""
    beams: int = 3
    generate_too: bool = False
    """Let beam search answer beside a ranking."""
    batch: int = 16
    """Questions at a time."""
    precision: str = "auto"
    dependence: int = 1000
    """Questions at most that are asked again with other images; 0: none."""

    @property
    def folder_name(self) -> str:
        """Where results are written in a run's folder."""
        protocol = "" if self.protocol == "paper" else f"-{self.protocol}"
        return f"evaluation-{self.split}-{self.mode}{protocol}"


@dataclass(frozen=True)
class Questions:
    """What a protocol lets an evaluation know."""

    split: ShardSplit | SelectedSplit
    """What is asked."""
    known: list[Question]
    """The training questions, whose answers may be ranked."""
    learned: list[Question]
    """Those that the baselines learn from: all of them but the ones that are asked."""
    test: list[Question]
    """Empty under ``clean``, where nothing may know the test questions before the model has answered."""
    counts: Mapping[str, Any]
    """For results.json and for people."""


def evaluate(loaded: Loaded, asked: Asked, output: Path | None = None, cache: CacheConfig | None = None) -> dict[str, Any]:
    """Ask the model every question, score and show its answers, and write results.json and predictions.jsonl; returns the results.

    ``output``: default a folder of the run, named after split, mode and protocol.
    """
    keep_freed_memory()
    rules, config = protocol(asked.protocol), loaded.config
    shards = storage_of(asked.shards, cache)
    there = asked_questions(shards, asked.split, asked.protocol, config.answering.selection)
    split, train = there.split, there.known
    form = config.answering.form
    writing = Writing(tokenizer=loaded.tokenizer, form=form, positions=config.text.positions)
    warnings = _misfits(writing, split, train, rules.name, config.answering.max_unknown)
    candidates = rules.candidates(train, there.test, form)
    method = Method(
        mode=asked.mode,
        k=asked.k,
        beams=asked.beams,
        max_tokens=writing.longest(question.answer for question in train),
        normalisation=form,
        also_generate=asked.generate_too,
    )
    device = next(loaded.model.parameters()).device
    dtype = autocast_dtype(asked.precision, device)
    predictor = Predictor(loaded.model, loaded.tokenizer, candidates.answers, method, device, dtype, asked.batch)
    started = time.monotonic()
    given = list(predictor.predict(split))
    seconds = time.monotonic() - started
    reading = {"candidate_tree": predictor.reading()} if predictor.nodes_read else {}
    source = str(read_index(shards)["source"])
    results: dict[str, Any] = {
        **summarise(given, there.learned, rules, candidates, source, form, asked.split),
        "answers": answers_in_reach([g.question for g in given], train, candidates.answers, writing, method.max_tokens),
        "method": vars(method),
        **reading,
        **({"image_dependence": image_dependence(predictor, split, given, asked.dependence)} if asked.dependence else {}),
        "calibration": calibration(given, form),
        "split": asked.split,
        "splits": there.counts,
        "trained": loaded.trained,
        "shards": {"folder": shards.place, "source": source, "fingerprint": split.fingerprint},
        "checkpoint": str(loaded.checkpoint),
        "seconds_per_question": round(seconds / len(given), 4),
        "precision": str(dtype).removeprefix("torch."),
        "configuration": to_dict(config),
        **provenance(),
    }
    notes = [*rules.habits(source, form), *_cautions(rules.name, loaded.trained["protocol"], form), *warnings]
    notes += remarks(results["answers"])
    if any(view["published"] for view in results["views"].values()):
        results["differs_from_published"] = differences_to_paper(results["configuration"])
        notes.append(f"Published rows: {literature()['source']}. What differs: {'; '.join(results['differs_from_published'])}.")
    folder = output or run_of(loaded.checkpoint) / asked.folder_name
    write_results(folder, results, given, form)
    show(results)
    if "image_dependence" in results:
        say(f"image dependence: {results['image_dependence']['sentence']}")
    for note in notes:
        say(f"note: {note}")
    say(f"{len(given)} questions in {seconds:.0f} s; written to {folder}.")
    return results


def image_dependence(
    predictor: Predictor, split: ShardSplit | SelectedSplit, given: Sequence[Prediction], most: int
) -> dict[str, Any]:
    """For results.json: the certificate of at most ``most`` questions, evenly spaced among those of ``split``, and its seconds.

    ``given``: the answers to all questions of ``split`` with their own images.
    """
    started = time.monotonic()
    items, size = spread(len(split), most), predictor.model.vision.image_size
    instead: dict[str, list[Prediction]] = {}
    sights = {"shuffled": shuffled(items, size, split), "blank": blank(items, size), "noise": noise(items, size)}
    for name, sight in sights.items():
        if sight is not None:
            answers = predictor.predict(split, sight=sight, what=f"questions with {CONDITIONS[name]}")
            by_item = dict(zip(sight.items, answers, strict=True))
            instead[name] = [by_item[item] for item in items]
    found = certificate([given[item] for item in items], instead, predictor.method.normalisation)
    return {"sentence": sentence(found), **found, "seconds": round(time.monotonic() - started, 2)}


def asked_questions(shards: Storage, split: str, protocol: str, selection: float) -> Questions:
    """The questions of a split and of training under a protocol. M2I2Error where the split has none.

    ``selection``: the share of the training questions that chose the checkpoint, the split ``selection`` of ``clean``.
    """
    asked: ShardSplit | SelectedSplit
    if protocol == "clean":
        parts = clean_parts(shards, selection)
        asked = parts.selection if split == "selection" else ShardSplit.open(shards, split, "vqa")
        known, test, counts = questions_of(parts.known), [], dict(parts.counts)
        learned = questions_of(parts.train) if split == "selection" else known
    else:
        asked = ShardSplit.open(shards, split, "vqa")
        known, test = (questions_of(ShardSplit.open(shards, name, "vqa")) for name in ("train", "test"))
        learned, counts = known, {"training_questions": len(known), "test_questions": len(test)}
    if not len(asked):
        raise M2I2Error(f"The split {split!r} of {shards.place} holds no questions under {protocol}.")
    return Questions(asked, known, learned, test, {**counts, "asked": len(asked)})


def _misfits(
    writing: Writing, split: ShardSplit | SelectedSplit, train: Sequence[Question], protocol: str, most: float
) -> list[str]:
    """A warning where the vocabulary does not fit; under ``clean`` an M2I2Error. No answer of the split is looked at."""
    problem = misfit(writing.fits(questions_of(split), (question.answer for question in train)), most)
    if problem and protocol == "clean":
        raise M2I2Error(f"{problem} The protocol clean does not score such a model.")
    return [f"Warning: {problem}"] if problem else []


def _cautions(protocol: str, trained: str, form: str) -> list[str]:
    """What a reader must know where a model was not trained under the protocol that scores it."""
    found = []
    if protocol == "clean" and trained != "clean":
        found.append(
            f"It was trained under {trained}: it may have seen rewrites of test questions, or been chosen by the test set."
        )
    if protocol == "clean" and form != "fixed":
        found.append(f"It was trained with the form {form} of answers and is scored in it; clean trains with fixed by now.")
    if protocol == "paper" and form != "official":
        found.append(f"It was trained with the form {form} of answers and is scored in it; published numbers are official.")
    return found


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to; beside an official file, one of its name."""
    if checkpoint.is_file():
        return checkpoint.with_suffix("")
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
