"""The image-dependence certificate: what the model is shown, what it answers then, and the figures and the sentence of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2i2.cli.evaluate import main as evaluate
from m2i2.cli.make_shards import main as make_shards
from m2i2.config import TextConfig, VisionConfig
from m2i2.data.images.transforms import normalise
from m2i2.data.loading.subset import spread
from m2i2.data.records import Question
from m2i2.data.shards.split import ImageQuestion, ShardSplit
from m2i2.data.text.tokenizer import train_tokenizer
from m2i2.evaluation.calibration import calibration
from m2i2.evaluation.dependence import CONDITIONS, certificate, least, sentence
from m2i2.inference.predictor import Method, Prediction, Predictor
from m2i2.inference.substitution import blank, donors, noise, own, shuffled
from m2i2.models.vqa import VQAModel
from m2i2.workflows.evaluation import image_dependence

SIZE, IMAGES = 16, 12


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> ShardSplit:
    """Images of different shades, each with a closed and an open question, their types different."""
    folder = tmp_path_factory.mktemp("dependence")
    lines = ["image,question,answer,answer_type,split,question_type"]
    for number in range(IMAGES):
        Image.new("L", (SIZE, SIZE), 20 * number).save(folder / f"{number}.png")
        lines.append(f"{number}.png,is it dark?,{'yes' if number < 6 else 'no'},CLOSED,test,shade")
        lines.append(f"{number}.png,what is it?,a square,OPEN,test,kind")
    (folder / "q.csv").write_text("\n".join(lines) + "\n")
    words = ["vqa", "json", folder / "q.csv", "--output", folder / "shards", "--keep-bytes", "--workers", "1"]
    assert make_shards([*map(str, words)]) == 0
    return ShardSplit.open(folder / "shards", "test", "vqa")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """A model of random weights whose answers depend on the image."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["is it dark? what is it? yes no a square"], 100)
    text = TextConfig(
        vocabulary_size=tokenizer.size, width=16, depth=2, heads=2, intermediate=32, fusion_layer=1, positions=32, decoder_depth=1
    )
    model = VQAModel(VisionConfig(image_size=SIZE, patch_size=8, width=16, depth=1, heads=2), text)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    method = Method(mode="rank", normalisation="fixed")
    return Predictor(model, tokenizer, ("yes", "no", "a square"), method, torch.device("cpu"), torch.float32, batch=5)


def test_the_model_is_shown_what_the_certificate_says(split: ShardSplit) -> None:
    items = list(range(len(split)))
    shades = {split.read(item).key: int(np.asarray(own(items, SIZE).pixels(item, split.read(item)))[0, 0, 0]) for item in items}
    assert len(set(shades.values())) == IMAGES
    other = shuffled(items, SIZE, split)
    assert other is not None and sorted(other.items) == items
    given = {}
    for item in other.items:
        sample = split.read(item)
        given[item] = int(other.pixels(item, sample)[0, 0, 0])
        assert given[item] != shades[sample.key] and given[item] in shades.values()
        assert normalise(blank(items, SIZE).pixels(item, sample)[None]).abs().max() < 0.01
        drawn = noise(items, SIZE).pixels(item, sample)
        assert drawn.float().std() > 50 and torch.equal(drawn, noise(items, SIZE).pixels(item, sample))
    assert sorted(given[item] for item in items[::2]) == sorted(shades.values()), "every image serves once for each kind"
    assert [given[item] for item in other.items] == sorted(given.values(), key=[given[item] for item in other.items].index)


def test_an_image_is_exchanged_for_one_of_the_same_kind_where_there_is_one() -> None:
    def asked(item: int, image: str, closed: bool, kind: str) -> ImageQuestion:
        return ImageQuestion(
            item, image, image, Question(id=str(item), question="?", answer="a", closed=closed, metadata={"question_type": kind})
        )

    rows = [(0, "a", True, "x"), (1, "b", True, "x"), (2, "b", True, "y"), (3, "c", False, "x"), (4, "c", False, "x")]
    found = donors({row[0]: asked(*row) for row in rows})
    assert found is not None
    assert (found[0], found[1]) == (1, 0), "closed and of type x"
    assert found[2] == 0, "the only one of type y: another closed question, of another image"
    assert found[3] in (0, 1, 2) and found[3] == found[4], "no other image has an open question"
    assert donors({0: asked(0, "a", True, "x"), 1: asked(1, "a", False, "x")}) is None


def test_a_model_answers_as_if_the_image_were_the_questions_own(split: ShardSplit, predictor: Predictor) -> None:
    given = list(predictor.predict(split, progress=False))
    items = list(range(len(split)))
    other = shuffled(items, SIZE, split)
    assert other is not None
    exchanged = dict(zip(other.items, predictor.predict(split, progress=False, sight=other), strict=True))
    same_image = {(g.key, g.question.question): g.best for g in given}
    key_of = {split.read(item).image_sha256: split.read(item).key for item in items}
    for item, answer in exchanged.items():
        asked = split.question(item).question
        best = same_image[key_of[other.name(item, split.read(item))], asked.question]
        assert answer.question == asked and [text for text, _ in answer.best] == [text for text, _ in best]
        assert [p for _, p in answer.best] == pytest.approx([p for _, p in best], rel=1e-3)
    found = image_dependence(predictor, split, given, 10)
    assert found["overall"]["questions"] == 10 and found["seconds"] >= 0
    assert set(found["overall"]) == {"questions", "right_image", *CONDITIONS}
    chances = [g.best[0][1] for g in given if g.question.closed]
    assert max(chances) > 1.01 * min(chances), "the image counts"


def answered(number: int, prediction: str, truth: str = "yes", closed: bool = True, p: float = 0.5) -> Prediction:
    asked = Question(
        id=str(number), question="?", answer=truth, closed=closed, metadata={"question_type": "size" if closed else ""}
    )
    return Prediction(f"image {number % 100}", asked, ((prediction, p),))


def test_a_certificate_counts_what_is_lost_and_what_changes() -> None:
    given = [answered(i, "yes" if i < 15 else "no") for i in range(20)] + [answered(20, "lung", "lung", closed=False)]
    still = [answered(i, "yes" if i < 10 else "no") for i in range(20)] + [answered(20, "the lung", "lung", closed=False)]
    same = [answered(i, "yes") for i in range(20)] + [answered(20, "heart", "lung", closed=False)]
    found = certificate(given, {"shuffled": still, "blank": same}, "official")
    overall = found["overall"]
    assert overall["right_image"]["accuracy"] == pytest.approx(100 * 16 / 21, abs=0.01)
    assert overall["shuffled"]["lost"] == pytest.approx(100 * 5 / 21, abs=0.01) and overall["shuffled"]["changed"] == 23.81
    assert overall["blank"]["lost"] == pytest.approx(-100 * 4 / 21, abs=0.01), "more right without the image"
    assert found["closed"]["questions"] == 20 and found["open"]["blank"]["changed"] == 100
    assert list(found["by_question_type"]) == ["size"], "of the other there are too few"
    assert least(overall) == "blank"
    assert sentence(found).startswith(
        "accuracy 76.2 %, none of which needs the image: with a blank image it has 95.2 %, and 28.6 % of"
    )
    told = certificate(given, {"shuffled": still}, "official")
    assert "of which 23.8 points [" in sentence(told) and "includes 0" not in sentence(told)
    hardly = [*given[:14], answered(14, "no"), *given[15:]]
    assert "of which 4.8 points [0.0, 14.3] need the image" in sentence(certificate(given, {"noise": hardly}, "official"))
    assert "The interval includes 0" in sentence(certificate(given, {"noise": hardly}, "official"))


@pytest.mark.parametrize(("total", "most", "items"), [(5, 9, [0, 1, 2, 3, 4]), (5, 3, [0, 2, 4]), (1, 1, [0]), (9, 1, [0])])
def test_fewer_questions_are_spread_evenly(total: int, most: int, items: list[int]) -> None:
    assert spread(total, most) == items


def test_calibration_tells_a_true_probability_from_a_boast() -> None:
    rng = np.random.default_rng(0)
    chances = rng.random(2000)
    right = rng.random(2000) < chances
    true = [answered(i, "yes" if r else "no", p=float(p)) for i, (p, r) in enumerate(zip(chances, right, strict=True))]
    found = calibration(true, "official")["overall"]
    assert found["ece"] < 0.04 and found["ece_if_perfect"] == pytest.approx(found["ece"], abs=0.02)
    assert found["brier"] == pytest.approx(1 / 6, abs=0.01) and len(found["bins"]) == 10
    assert all(one["interval"][0] < one["confidence"] < one["interval"][1] for one in found["bins"][1:-1:2])
    boast = [answered(i, "yes" if r else "no", p=0.99) for i, r in enumerate(right[:400])]
    found = calibration(boast, "official")["closed"]
    assert found["ece"] == pytest.approx(0.99 - right[:400].mean(), abs=1e-4) and found["ece_if_perfect"] < 0.02
    assert [one["questions"] for one in found["bins"]] == [400] and "open" not in calibration(boast, "official")


def test_a_negative_number_of_questions_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert evaluate(["--checkpoint", str(tmp_path), "--shards", "x", "--image-dependence", "-1"]) == 2
    assert "--image-dependence -1 must not be negative" in capsys.readouterr().err
