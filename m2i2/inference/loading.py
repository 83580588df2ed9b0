"""What the tools that answer single questions share: a model from wherever it lies, and the answers it may choose from."""

import json
from pathlib import Path

import torch

from m2i2.config import FinetuningConfig
from m2i2.data.shards.split import ShardSplit
from m2i2.data.text.tokenizer import load_tokenizer, require_size
from m2i2.errors import M2I2Error
from m2i2.evaluation.protocols import distinct_answers
from m2i2.inference.answering import Answerer
from m2i2.inference.predictor import questions_of
from m2i2.models.vqa import VQAModel
from m2i2.models.weights import load, read_state
from m2i2.training.checkpoint import find_checkpoint, read_config


def load_answerer(source: Path, candidates: tuple[str, ...] = ()) -> Answerer:
    """The answering model of a finetuning run, of a checkpoint of it, or of a Hugging Face folder, ready to be asked."""
    if (source / "processor_config.json").exists():
        from m2i2.hub.conversion import read

        weights = read(source)
        if not isinstance(weights.settings, FinetuningConfig) or weights.tokenizer is None:
            raise M2I2Error(f"{source} is a pretrained model, which answers no questions; finetune it first.")
        config, state, tokenizer, where = weights.settings, weights.student, weights.tokenizer, source
    else:
        where = find_checkpoint(source)
        if where.is_file():
            raise M2I2Error(f"{where} is an official file; convert it first: python tools/convert.py {where} --to checkpoint ...")
        config = read_config(FinetuningConfig, where)
        state, tokenizer = read_state(where / "model.safetensors"), load_tokenizer(where / "tokenizer")
    require_size(tokenizer, config.text.vocabulary_size, str(where))
    model = VQAModel(config.vision, config.text)
    load(model, state, str(where))
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
    return Answerer(model, tokenizer, config.answering.normalisation, candidates)


def read_candidates(source: Path) -> tuple[str, ...]:
    """Answers to choose from: a text file, one a line; a JSON list; or the training answers of question shards."""
    if source.is_dir():
        return distinct_answers(questions_of(ShardSplit.open(source, "train", "vqa")))
    try:
        text = source.read_text(encoding="utf-8")
        found = json.loads(text) if source.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as e:
        raise M2I2Error(f"Cannot read the candidates {source}: {e}.") from e
    if not isinstance(found, list) or not all(isinstance(answer, str) for answer in found):
        raise M2I2Error(f"{source} is no list of answers; write one a line, or a JSON list of texts.")
    answers = tuple(dict.fromkeys(answer.strip().lower() for answer in found if answer.strip()))
    if not answers:
        raise M2I2Error(f"{source} holds no answers.")
    return answers
