"""Recall by hand-made similarities, chance, medians, and the command that measures a checkpoint; pictures out of patches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from m2i2.cli.evaluate import main as evaluate
from m2i2.cli.make_shards import main as make_shards
from m2i2.data.images.transforms import EvaluationTransform
from m2i2.data.shards.split import ShardSplit
from m2i2.data.text.cleaning import clean_caption
from m2i2.evaluation.retrieval import chance, retrieval_scores
from m2i2.evaluation.scoring import resampled_medians
from m2i2.inference.retrieval import encode_pairs, matching_margins, nearest, reranked
from m2i2.models.vision import patchify, unpatchify
from m2i2.training.retrieval import recalls
from m2i2.workflows.retrieval import load_pretrained
from tests.random_run import write_random_pretraining


def test_recall_counts_the_place_of_the_best_right_answer() -> None:
    texts = 12
    similarity = torch.zeros(texts, texts)
    for image in range(texts):
        similarity[image, :image] = 1.0  # as many wrong texts before the right one as the image's number
        similarity[image, image] = 0.5
    found = recalls(similarity, torch.eye(texts, dtype=torch.bool))
    assert [round(found[f"image_to_text_r{k}"], 3) for k in (1, 5, 10)] == [8.333, 41.667, 83.333]
    reverse = recalls(similarity.T, torch.eye(texts, dtype=torch.bool))
    assert [round(reverse[f"text_to_image_r{k}"], 3) for k in (1, 5, 10)] == [8.333, 41.667, 83.333]


def test_any_right_answer_counts_and_equal_features_find_nothing() -> None:
    right = torch.eye(20, dtype=torch.bool)
    assert set(recalls(torch.ones(20, 20), right).values()) == {0.0}
    similarity = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    best = similarity.argmax(dim=1)
    right[torch.arange(20), best] = True
    assert recalls(similarity, right)["image_to_text_r1"] == 100.0


def test_patches_go_back_to_their_places() -> None:
    image = torch.rand(2, 3, 24, 24)
    assert torch.equal(unpatchify(patchify(image, 8), 8), image)


def test_chance_is_what_a_random_order_gives() -> None:
    rng, right = np.random.default_rng(0), [1, 1, 2, 5]
    drawn = np.array([[rng.permutation(20)[:count].min() + 1 for count in right] for _ in range(4000)])
    found = chance(right, 20)
    for k in (1, 5, 10):
        assert found[f"r{k}"] == pytest.approx(100 * (drawn <= k).mean(), abs=1.5)
    assert abs(found["median_rank"] - np.median(drawn)) <= 1
    assert chance([1] * 948, 948) == {"r1": 0.11, "r5": 0.53, "r10": 1.05, "median_rank": 474.0}
    assert chance([2, 2], 2) == {"r1": 100.0, "r5": 100.0, "r10": 100.0, "median_rank": 1.0}


def test_medians_have_the_interval_of_clusters() -> None:
    values, clusters = list(range(1, 101)), [str(i) for i in range(100)]
    medians = resampled_medians(values, clusters)
    assert abs(np.median(medians) - 50) <= 2 and 8 < np.std(medians) * 2 < 14, "5 of a uniform law of 100"
    assert set(resampled_medians([3, 3, 7, 7], ["a", "a", "b", "b"])) == {3.0, 7.0}, "two samples, not four"


def test_equal_captions_count_as_right_and_the_matching_head_only_reorders_the_nearest() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.2, 0.1], [0.3, 0.2, 0.1]])
    margins = torch.tensor([[-5.0, 3.0, -torch.inf], [1.0, -2.0, -torch.inf], [0.0, 0.5, -torch.inf]])
    order = reranked(similarity, margins, 2)
    assert order.argsort(dim=1, descending=True).tolist() == [[1, 0, 2], [0, 1, 2], [1, 0, 2]]
    assert nearest(similarity, 2).tolist() == [[True, True, False]] * 3 and nearest(similarity, 9).all()
    found = retrieval_scores({"ITC": (similarity, similarity.T)}, [0, 1, 2], [0, 1, 0])
    assert (found["pairs"], found["images"], found["captions"]) == (3, 3, 2)
    assert found["image_to_text"]["ITC"]["r1"] == 66.67, "the caption of the third image is the first one's too"
    assert found["image_to_text"]["ITC"]["median_rank"] == 1 and found["image_to_text"]["chance"]["r1"] == 55.56


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caption shards of two sources and a checkpoint of a small pretraining model, its weights at random."""
    folder = tmp_path_factory.mktemp("retrieval")
    for name, seed in (("one", "0"), ("two", "1")):
        words = ["captions", "phantoms", "--output", str(folder / name), "--count", "40", "--seed", seed, "--side", "32"]
        assert make_shards([*words, "--workers", "1"]) == 0
    write_random_pretraining(folder / "run", folder / "one")
    return folder


def test_the_command_measures_every_source(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [str(folder / name) for name in ("one", "two")]
    assert (
        evaluate(["retrieval", "--checkpoint", str(folder / "run"), "--shards", *shards, "--split", "train", "--rerank", "5"]) == 0
    )
    results = json.loads((folder / "run" / "retrieval-train.json").read_text())
    out = capsys.readouterr().out
    assert list(results["sources"]) == shards and "image to text" in out and "chance" in out
    for found in results["sources"].values():
        assert found["pairs"] == found["of"] > 20 and found["source"] == "phantoms"
        for way in ("image_to_text", "text_to_image"):
            assert list(found[way]) == ["ITC", "ITM, of 5", "chance"]
            for row in (found[way]["ITC"], found[way]["ITM, of 5"]):
                assert row["r1_interval"][0] <= row["r1"] <= row["r1_interval"][1]
                assert row["r1"] <= row["r5"] <= row["r10"]
            assert found[way]["ITC"]["r5"] == found[way]["ITM, of 5"]["r5"], "it puts the nearest five in another order"


def test_a_pair_alone_is_judged_as_among_others(folder: Path) -> None:
    pretrained, split = load_pretrained(folder / "run"), ShardSplit.open(folder / "one", "train", "captions")
    transform, tokenizer = EvaluationTransform(size=32), pretrained.tokenizer
    samples = [split.read(item) for item in range(6)]
    rows = [(transform(s.image, s.key), tokenizer.encode(clean_caption(s.captions[0]), 25)) for s in samples]
    together = encode_pairs(pretrained.model, rows, tokenizer.pad_id, torch.float32, batch=4)
    margins = matching_margins(pretrained.model, together, torch.ones(6, 6, dtype=torch.bool), torch.float32)
    for image, text in ((0, 0), (2, 5), (5, 1)):
        pair = [(rows[image][0], rows[text][1])]
        alone = encode_pairs(pretrained.model, pair, tokenizer.pad_id, torch.float32)
        assert float(alone.similarity) == pytest.approx(float(together.similarity[image, text]), abs=1e-5)
        margin = matching_margins(pretrained.model, alone, torch.ones(1, 1, dtype=torch.bool), torch.float32)
        assert float(margin) == pytest.approx(float(margins[image, text]), abs=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shards", "one", "--split", "dev"], "has no split 'dev'"),
        (["--shards", "one", "--pairs", "1"], "--pairs 1 must be at least 2"),
        (["--shards", "one", "nowhere"], "nowhere has no index.json"),
    ],
)
def test_what_cannot_be_looked_for_is_refused(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert evaluate(["retrieval", "--checkpoint", "run", *words]) == 2
    out, err = capsys.readouterr()
    assert message in err and "recall" not in out, "refused before the first folder is scored"
