"""VQA finetuning, from settings to a finished run."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from m2i2.config import FinetuningConfig
from m2i2.data.loading.clean import clean_parts
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.rows import QuestionRows
from m2i2.data.loading.subset import SelectedSplit
from m2i2.data.shards.opening import storage_of
from m2i2.data.text.cleaning import clean_answer
from m2i2.data.text.fit import misfit
from m2i2.data.text.tokenizer import Tokenizer, load_tokenizer, require_same, require_size
from m2i2.distributed import on_first_rank
from m2i2.errors import M2I2Error
from m2i2.evaluation.reach import Writing
from m2i2.evaluation.selection import Selection
from m2i2.models.start import official_model, start_answering, stored_architecture
from m2i2.models.vqa import VQAModel
from m2i2.tasks.vqa import VQATask
from m2i2.training.evaluators import Evaluator
from m2i2.training.processes import Process, leave
from m2i2.training.trainer import Trainer
from m2i2.workflows.beginning import begin
from m2i2.workflows.run_folder import claim_run, record_start, resolved, stored_form, stored_tokenizer
from m2i2.workflows.training_data import make_augmentation, make_loader


def finetune(
    config: FinetuningConfig,
    folder: Path,
    deepspeed_config: Path | None = None,
    allow_fewer_ranks: bool = False,
    examine_nodes: bool = False,
) -> int:
    """Finetune in ``folder``, from its newest checkpoint if it has one; returns the exit code. Collective.

    The last two arguments are those of `begin`.
    """
    config, runtime, stop = begin(
        config, folder, deepspeed_config, allow_fewer_ranks=allow_fewer_ranks, examine_nodes=examine_nodes
    )
    process = runtime.process
    if config.answering.normalisation == "auto":  # a run goes on in the form in which it began
        form = stored_form(folder) or config.answering.form
        config = replace(config, answering=replace(config.answering, normalisation=form))
    start = resolved(config.start)
    config, tokenizer = fitted(config, start.checkpoint, stored_tokenizer(folder, start.tokenizer))
    rows = QuestionRows(
        augmentation=make_augmentation(config.vision.image_size, config.data),
        tokenizer=tokenizer,
        max_words=config.data.max_words,
        max_tokens=config.text.positions,
        normalisation=config.answering.form,
    )
    corpus, held = training_questions(config, process)
    longest = on_first_rank(lambda: examined(config, corpus, tokenizer, process))
    loader = make_loader(corpus, rows, config.data, config.training, process)
    torch.manual_seed(config.training.seed)
    student = VQAModel(config.vision, config.text)
    for line in start_answering(student, start, config.answering.decoder_start == "multimodal"):
        process.say(line)
    claim_run(folder)
    task = VQATask(student, config, runtime.dtype)
    evaluators: list[Evaluator] = []
    if held is not None and len(held):
        every = max(1, round(config.answering.select_every * loader.steps_per_epoch))
        evaluators.append(Selection(task, held, tokenizer, process, every, longest))
    trainer = Trainer(config, task, loader, runtime, folder, tokenizer.save, evaluators)
    trainer.resume()
    code = trainer.run(stop, begun=lambda: record_start(folder, config, process))
    leave()
    return code


def training_questions(config: FinetuningConfig, process: Process) -> tuple[Corpus, SelectedSplit | None]:
    """The questions to train on under the run's protocol, and those that choose its best checkpoint (None: the last one is)."""
    if config.answering.protocol == "paper":
        return Corpus.open(config.data.shards, config.data.split, "vqa", config.data), None
    if len(config.data.shards) > 1 or config.data.split != "train":
        raise M2I2Error(
            "The protocol clean takes one folder of shards and its split train, because it must know which test set the "
            "questions belong to; finetune on one data set at a time, or with answering.protocol=paper."
        )
    shards = storage_of(config.data.shards[0], config.data)
    parts = clean_parts(shards, config.answering.selection, with_rewrites=config.answering.rewrites)
    process.say(f"Protocol clean: {', '.join(f'{name} {value}' for name, value in parts.counts.items())}.".replace("_", " "))
    return Corpus([parts.train]), parts.selection


def examined(config: FinetuningConfig, corpus: Corpus, tokenizer: Tokenizer, process: Process) -> int:
    """Tokens of the longest answer; says what is wrong with the training questions in this vocabulary and form of answers.

    M2I2Error under ``clean`` where the vocabulary does not fit. Of shards behind a URL the first 1,000 questions are read.
    """
    questions = [
        asked.question
        for part in corpus.parts
        for asked in islice(part.questions(), None if part.storage.capacity is None else 1000)
    ]
    answering, answers = config.answering, [question.answer for question in questions]
    writing = Writing(tokenizer=tokenizer, form=answering.form, positions=config.text.positions)
    if problem := misfit(writing.fits(questions, answers), answering.max_unknown):
        if answering.protocol == "clean":
            raise M2I2Error(f"{problem} The protocol clean does not train on it.")
        process.say(f"Warning: {problem}")
    if lost := sum(bool(answer.strip()) and not clean_answer(answer, answering.form) for answer in answers):
        process.say(
            f"Warning: the form {answering.form} cleans the answers of {lost} of {len(answers)} training questions to an empty "
            f"text, which the model learns to write; answering.normalisation=fixed keeps them."
        )
    return writing.longest(answers)


def fitted(config: FinetuningConfig, checkpoint: str, own: Tokenizer | None) -> tuple[FinetuningConfig, Tokenizer]:
    """The settings with the architecture of the ``checkpoint`` that they start from ("": none), and its tokenizer.

    ``own``: the tokenizer that the run has stored already.
    """
    start, tokenizer = config.start, own
    if checkpoint:
        path = Path(checkpoint)
        if path.is_dir():
            vision, text = stored_architecture(path)
            stored = load_tokenizer(path / "tokenizer")
            if start.tokenizer:
                require_same(load_tokenizer(start.tokenizer), stored, str(path))
            tokenizer = tokenizer or stored
        else:
            _, vision, text = official_model(path)
        config = replace(
            config,
            vision=replace(vision, image_size=config.vision.image_size),
            text=replace(
                text,
                dropout=config.text.dropout,
                attention_dropout=config.text.attention_dropout,
                decoder_depth=text.depth - text.fusion_layer,
            ),
        )
    if tokenizer is None:
        named = start.tokenizer or start.text
        if not named:
            raise M2I2Error(
                "Which tokenizer? Name a pretraining run with --checkpoint (it stores its own), or start.tokenizer=NAME_OR_FOLDER "
                "(tools/make_tokenizer.py makes one from shards)."
            )
        tokenizer = load_tokenizer(named)
    if checkpoint:
        require_size(tokenizer, config.text.vocabulary_size, start.checkpoint)
    return replace(config, text=replace(config.text, vocabulary_size=tokenizer.size)), tokenizer
