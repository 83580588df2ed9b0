"""The report of a run that was really trained and evaluated: whole, honest about what is missing, at home in a browser."""

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from m2i2.cli.make_shards import main as make_shards
from m2i2.cli.report import main as report
from tests.launching import succeed


class Page(HTMLParser):
    """Texts, images and references of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: list[tuple[str, str]] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text())
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag == "img":
            self.images.append((values["alt"], values["src"]))
        self.references += [values[name] for name in ("href", "src", "xlink:href", "srcset") if name in values]

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
    assert [sheet.size for sheet in sheets] == [(200, 14 + 6 * 68)] * 2, "the first and the last validation"
    results = json.loads((folder / "fine" / "evaluation-test-rank" / "results.json").read_text())
    assert results["image_dependence"]["sentence"] in page.text
    for kind in ("closed", "open", "overall"):
        assert f"{results['views']['test']['model'][kind]['accuracy']:.1f}" in page.text
    for word in (
        "question only (no image)",
        "recall, image to text",
        "Confusion by question type",
        "The same answers by every rule in use",
        "Does it look at the image?",
        "the image of another question of the same kind",
        "Are its probabilities true?",
        "objectives.queue",
        "deepspeed",
    ):
        assert word in page.text, word


def test_answers_stand_with_their_image_and_its_map(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    page = made(folder, "fine", "--examples", "3")
    lines = (folder / "fine" / "evaluation-test-rank" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    maps = [picture(source) for alt, source in page.images if alt == "Grad-CAM"]
    plain = [(alt, picture(source)) for alt, source in page.images if alt != "Grad-CAM"]
    assert (
        len(maps) == len(plain) == sum(min(3, len({r["image"] for r in rows if r["correct"] == right})) for right in (True, False))
    )
    wrong = max((row for row in rows if not row["correct"]), key=lambda row: row["best"][0][1])
    assert wrong["question"] in page.text and wrong["image"] in [alt for alt, _ in plain]
    for (_, image), overlay in zip(plain, maps, strict=True):
        assert image.size == overlay.size
        assert image.tobytes() != overlay.tobytes()


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


def test_a_browser_shows_it_without_overflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    monkeypatch.chdir(folder)
    made(folder, "pre", "fine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        for width in (1280, 500):
            browser.set_window_size(width, 900)
            browser.get((folder / "page.html").as_uri())
            inner, content = browser.execute_script("return [window.innerWidth, document.documentElement.scrollWidth]")
            assert content <= inner, (width, content)
        broken = "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
        assert browser.execute_script(broken) == 0
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    finally:
        browser.quit()
