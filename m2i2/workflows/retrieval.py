"""Retrieval by a pretrained model, from its checkpoint to a table for each source of pairs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m2i2.backends.choice import install
from m2i2.config import CacheConfig, PretrainingConfig
from m2i2.data.images.transforms import EvaluationTransform
from m2i2.data.loading.subset import spread
from m2i2.data.shards.split import ShardSplit, read_index
from m2i2.data.text.cleaning import clean_caption
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.errors import M2I2Error
from m2i2.evaluation.retrieval import retrieval_scores, show_retrieval
from m2i2.files import write_json
from m2i2.hub.conversion import read
from m2i2.inference.retrieval import EncodedPairs, encode_pairs, matching_margins, nearest, reranked
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.weights import load
from m2i2.precision import autocast_dtype
from m2i2.provenance import provenance
from m2i2.terminal import say


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A pretrained model, in evaluation mode and on its device."""

    model: PretrainingModel
    tokenizer: Tokenizer
    config: PretrainingConfig
    place: Path


@dataclass(frozen=True, kw_only=True)
class AskedPairs:
    """Which pairs are looked for, and how."""

    shards: Sequence[str]
    """Folders of caption shards, or URLs; each is a source with a table of its own."""
    split: str = "val"
    pairs: int = 1000
    """Of a source at most, evenly spaced."""
    rerank: int = 32
    """Nearest captions or images that the matching head puts in order; 0: none."""
    batch: int = 32
    precision: str = "auto"


def load_pretrained(source: Path, tokenizer: str = "") -> Pretrained:
    """The model of a pretraining run, a checkpoint, an official ``.pth`` (with its ``tokenizer``) or a Hugging Face folder."""
    weights = read(source, tokenizer)
    if not isinstance(weights.settings, PretrainingConfig):
        raise M2I2Error(f"{source} is an answering model, which has no contrast of images and captions; name a pretraining run.")
    if weights.tokenizer is None:
        raise M2I2Error(f"{source} carries no tokenizer; name the one it was trained with: --tokenizer bert-base-uncased.")
    config = weights.settings
    model = PretrainingModel(config.vision, config.text, config.objectives)
    load(model, weights.student, str(source))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    install(device)
    model.to(device).eval().requires_grad_(False)
    return Pretrained(model=model, tokenizer=weights.tokenizer, config=config, place=source)


def retrieve(pretrained: Pretrained, asked: AskedPairs, output: Path, cache: CacheConfig | None = None) -> dict[str, Any]:
    """Score every source by itself, show the tables and write them to ``output`` (JSON); returns what it holds."""
    found: dict[str, Any] = {}
    started = time.monotonic()
    splits = {place: ShardSplit.open(place, asked.split, "captions", cache) for place in asked.shards}
    if empty := [place for place, split in splits.items() if not len(split)]:
        raise M2I2Error(f"The split {asked.split!r} of {empty[0]} holds no pairs; name another one with --split.")
    for place, split in splits.items():
        scores, counted = _scores(pretrained, split, asked)
        found[place] = {"source": str(read_index(split.storage)["source"]), "fingerprint": split.fingerprint, **counted, **scores}
        show_retrieval(place, found[place])
    results = {
        "checkpoint": str(pretrained.place),
        "split": asked.split,
        "rerank": asked.rerank,
        "sources": found,
        "seconds": round(time.monotonic() - started, 2),
        **provenance(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, results, ascii=False)
    say(f"written to {output}")
    return results


def _scores(pretrained: Pretrained, split: ShardSplit, asked: AskedPairs) -> tuple[dict[str, Any], dict[str, int]]:
    """The figures of one source, and how many of its pairs were looked for."""
    config, tokenizer = pretrained.config, pretrained.tokenizer
    transform = EvaluationTransform(size=config.vision.image_size)
    images: dict[str, int] = {}
    captions: dict[str, int] = {}
    image_id, caption_id = [], []
    items = spread(len(split), asked.pairs)

    def pairs() -> Any:
        for item in items:
            sample = split.read(item)
            caption = clean_caption(sample.captions[0], config.data.max_words)
            image_id.append(images.setdefault(sample.image_sha256, len(images)))
            caption_id.append(captions.setdefault(caption, len(captions)))
            yield transform(sample.image, sample.key), tokenizer.encode(caption, config.data.max_tokens)

    dtype = autocast_dtype(asked.precision, pretrained.model.temp.device)
    encoded = encode_pairs(pretrained.model, pairs(), tokenizer.pad_id, dtype, asked.batch)
    similarity = encoded.similarity
    scored = {"ITC": (similarity, similarity.T)}
    if asked.rerank:
        scored[f"ITM, of {asked.rerank}"] = _reranked(pretrained.model, encoded, asked.rerank, dtype)
    return retrieval_scores(scored, image_id, caption_id), {"of": len(split)}


def _reranked(model: PretrainingModel, encoded: EncodedPairs, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores both ways, the k nearest in the matching head's order; each pair is judged once."""
    similarity = encoded.similarity
    margins = matching_margins(model, encoded, nearest(similarity, k) | nearest(similarity.T, k).T, dtype)
    return reranked(similarity, margins, k), reranked(similarity.T, margins.T, k)
