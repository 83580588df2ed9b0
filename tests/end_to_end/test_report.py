"""The report of a run that was really trained and evaluated: whole, honest about what is missing, at home in a browser."""

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from m2i2.app.card import card_of
from m2i2.cli.make_shards import main as make_shards
from m2i2.cli.report import main as report
from m2i2.inference.overlay import TICKS, scale_bar
from m2i2.reporting.examples import surest_mistakes, unexpected
from m2i2.workflows.answering import load_model
from tests.browser import low_contrast, open_browser, resize
from tests.launching import succeed


class Page(HTMLParser):
    """Texts, images and references of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[tuple[str, str]] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(path.read_text())
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag == "img":
            self.images.append((values["alt"], values["src"]))
        found = [values[name] for name in ("href", "src", "xlink:href", "srcset") if name in values]
        self.links += [reference for reference in found if reference.startswith("#")]
        self.references += [reference for reference in found if not reference.startswith("#")]
        self.ids += [values["id"]] if "id" in values else []

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.words.append(data)


def picture(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short pretraining with validations, a short finetuning and its evaluation."""
    folder = tmp_path_factory.mktemp("report")
    for kind, count in (("captions", "160"), ("vqa", "40")):
        assert make_shards([kind, "phantoms", "--output", str(folder / kind), "--count", count, "--side", "64"]) == 0
    small = ["--preset", "tiny", "training.batch=8", "training.log_every=1", "monitor.tensorboard=off"]
    words = ["--shards", "captions", "--output", "pre", *small, "training.max_steps=4", "validation.every=2"]
    succeed("pretrain", words, folder)
    words = ["--checkpoint", "pre", "--shards", "vqa", "--output", "fine", *small, "training.max_steps=4"]
    succeed("finetune", words, folder)
    succeed("evaluate", ["--checkpoint", "fine", "--shards", "vqa"], folder)
    return folder


def made(folder: Path, *words: str) -> Page:
    output = folder / "page.html"
    assert report([*map(str, words), "--output", str(output)]) == 0
    return Page(output)


def test_the_page_holds_everything_and_refers_to_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    page = made(folder, "pre", "fine")
    assert all(reference.startswith("data:") for reference in page.references)
    assert "script" not in page.tags and "link" not in page.tags
    assert "url(" not in (folder / "page.html").read_text()
    assert page.tags.count("svg") >= 10
    sheets = [picture(source) for alt, source in page.images if "reconstructed" in alt]
    assert [sheet.size for sheet in sheets] == [(200, 6 * 68)] * 2, "the first and the last validation, without the small titles"
    results = json.loads((folder / "fine" / "evaluation-test-rank" / "results.json").read_text())
    assert results["image_dependence"]["sentence"] in page.text
    for kind in ("closed", "open", "overall"):
        assert f"{results['views']['test']['model'][kind]['accuracy']:.1f}" in page.text
    for word in (
        "question only (no image)",
        "M2I2 tiny on synthetic images",
        "Masked language modelling (MLM) Predict masked words",
        "guessing 1 of 3 0.6365",
        "Recall, captions found for images",
        "Mistakes worth seeing",
        "The same answers by every rule in use",
        "Does it look at the image?",
        "the image of another question of the same kind",
        "Are its probabilities true?",
        "objectives.queue",
        "deepspeed",
    ):
        assert word in page.text, word
    assert page.text.count(results["image_dependence"]["sentence"]) == 2, "in the summary and beside its table"
    assert page.text.count("start(s) went into steps that count.") == 2, "of the pretraining and of the finetuning"
    topics = [f"e1-0-{name}" for name in ("scores", "mistakes", "image", "calibration", "rules")]
    assert page.ids == ["summary", *topics, "r0-curves", "r1-curves", "configuration"]
    assert page.links[: len(page.ids)] == [f"#{name}" for name in page.ids], "the contents"


def test_answers_stand_with_their_image_and_its_map(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    page = made(folder, "fine", "--examples", "3")
    lines = (folder / "fine" / "evaluation-test-rank" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    maps = [picture(source) for alt, source in page.images if alt == "Grad-CAM"]
    plain = [(alt, picture(source)) for alt, source in page.images if alt.startswith("phantom")]
    (bar,) = (picture(source) for alt, source in page.images if "scale" in alt)
    assert np.abs(np.asarray(bar, dtype=int) - np.asarray(scale_bar(*bar.size), dtype=int)).max() == 0
    for tick in TICKS:
        assert f"{tick}×" in page.text
    assert (
        len(maps) == len(plain) == sum(min(3, len({r["image"] for r in rows if r["correct"] == right})) for right in (True, False))
    )
    wrong = max((row for row in rows if not row["correct"]), key=lambda row: row["best"][0][1])
    assert wrong["question"] in page.text and wrong["image"] in [alt for alt, _ in plain]
    for (_, image), overlay in zip(plain, maps, strict=True):
        assert image.size == overlay.size
        assert image.tobytes() != overlay.tobytes()


def row(number: int, kind: str, question: str, answer: str, given: str, probability: float) -> dict[str, Any]:
    found = {"id": str(number), "image": f"image-{number}", "question": question, "answer": answer, "prediction": given}
    return {
        **found,
        "correct": answer == given,
        "closed": True,
        "best": [[given, probability]],
        "metadata": {"question_type": kind},
    }


def test_the_examples_are_those_that_tell_most() -> None:
    """The surest mistakes of every type, and right answers that the question makes unlikely, not the surest trivial ones."""
    rows = [row(n, "presence", "is it there?", "no", "no", 0.99) for n in range(30)]
    rows += [row(30 + n, "presence", "is it there?", "yes", "yes", 0.6 + n / 100) for n in range(3)]
    rows += [row(40 + n, "presence", "is it there?", "yes", "no", 0.9 - n / 100) for n in range(3)]
    rows += [row(50, "side", "which side?", "left", "right", 0.4), row(51, "side", "which side?", "right", "right", 0.5)]
    assert [r["id"] for r in surest_mistakes(rows, 3)] == ["40", "50", "41"]
    assert [r["id"] for r in unexpected(rows, 4)] == ["32", "51", "31", "30"]
    assert [r["id"] for r in unexpected(rows[:30], 1)] == ["0"]
    assert surest_mistakes(rows[:30], 3) == []


def test_what_is_missing_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "fine" / "evaluation-test-rank", tmp_path / "evaluation")
    rows = (tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines()
    first = json.loads(rows[0]) | {"prediction": "<script>alert(1)</script>", "correct": False}
    first["best"] = [["<script>alert(1)</script>", 1.0]]
    (tmp_path / "evaluation" / "predictions.jsonl").write_text("\n".join([json.dumps(first), *rows[1:]]) + "\n")
    page = made(tmp_path, "evaluation")
    assert "Images are missing: vqa has no index.json" in page.text
    assert "image not at hand" in page.text and page.images == []
    assert "script" not in page.tags and "<script>alert(1)</script>" in page.text
    page = made(tmp_path, "evaluation", "--shards", str(folder / "vqa"))
    assert len(page.images) > 3
    assert "Grad-CAM overlays are missing: There is no checkpoint" in page.text
    page = made(tmp_path, "evaluation", "--shards", str(folder / "captions"))
    assert "Images are missing: " in page.text
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "settings.json").write_text((folder / "pre" / "settings.json").read_text())
    page = made(tmp_path, "new")
    assert "The run has not logged a step yet." in page.text and "the run was not validated" in page.text


def test_folders_that_are_no_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(tmp_path)]) == 2
    assert "holds neither settings.json of a run nor results.json" in capsys.readouterr().err
    assert report([str(tmp_path / "nothing")]) == 2


def test_in_a_browser_it_fits_can_be_read_and_prints(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the width of a screen and of a phone, in light and dark; every picture has an alternative; nothing is fetched."""
    monkeypatch.chdir(folder)
    made(folder, "pre", "fine")
    browser = open_browser(1280, 800)
    try:
        for width, scheme in ((1280, "light"), (390, "light"), (390, "dark")):
            resize(browser, width, 844)
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
            browser.get((folder / "page.html").as_uri())
            browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, width
            count, low = low_contrast(browser)
            assert count > 300 and not low, (width, scheme, low)
        wide = "return [...document.querySelectorAll('.bars, .glance .card, .scores')].every(e => e.scrollWidth <= 390)"
        assert browser.execute_script(wide), "the scores need no scrolling on a phone"
        assert browser.execute_script("return [...document.images].every(i => i.alt && i.naturalWidth > 0)")
        assert browser.execute_script("return [...document.querySelectorAll('svg')].every(i => i.getAttribute('aria-label'))")
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
        browser.find_element("tag name", "body").send_keys(Keys.TAB)
        assert browser.switch_to.active_element.text == "Summary", "the contents are the first thing that the Tab key reaches"
        browser.get((folder / "page.html").as_uri())
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        closed = "return [...document.querySelectorAll('details:not([open]) td')].every(e => e.checkVisibility())"
        assert browser.execute_script(closed), "what is folded is printed"
    finally:
        browser.quit()


def test_the_apps_card_of_a_run_has_its_scores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    card = card_of(load_model(Path("fine")), Path("fine"), 0)
    facts = dict(card.facts)
    results = json.loads((folder / "fine" / "evaluation-test-rank" / "results.json").read_text())
    assert facts["Scored"].startswith(f"{results['views']['test']['model']['overall']['accuracy']:.1f} % [")
    assert facts["Model"].endswith("step-00000004") and facts["Trained"] == "protocol paper, from pre"
    assert facts["Answers"] == "written by beam search" and card.name == "fine" and card.text == ""
