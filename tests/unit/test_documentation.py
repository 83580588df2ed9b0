"""Every command that the documentation prints is one that the commands take, and its Python runs."""

import importlib
import json
import re
import shlex
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from m2i2.cli.make_shards import main as make_shards
from tests.conftest import ROOT
from tests.launching import environment
from tests.preloaded import run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_SCRIPT = re.compile(r"(?:launchers|tools)/(\w+)\.py")


def commands(text: str) -> list[list[str]]:
    """The words behind python or deepspeed of every command that stands on lines of its own, continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    printed = [line.strip() for line in lines if re.match(r"\s*(python|deepspeed|torchrun) ", line)]
    found = [shlex.split(re.split(r" {3,}", line)[0], comments=True) for line in printed]  # what it does may stand behind it
    return [words for words in found if any(_SCRIPT.fullmatch(word) for word in words)]


def examples_of_help() -> list[tuple[str, list[str]]]:
    """Those at the end of every command's --help."""
    found = []
    for path in sorted((ROOT / "m2i2" / "cli").glob("*.py")):
        examples = getattr(importlib.import_module(f"m2i2.cli.{path.stem}"), "EXAMPLES", "")
        found += [(path.name, words) for words in commands(examples)]
    return found


DOCUMENTED = [(page.name, words) for page in PAGES for words in commands(page.read_text())] + examples_of_help()


@pytest.mark.parametrize(("page", "words"), DOCUMENTED, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_a_printed_command_is_understood(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its script exists, and its options and settings are known: the command itself reads them, and stops there."""
    place = next(i for i, word in enumerate(words) if _SCRIPT.fullmatch(word))
    script = _SCRIPT.fullmatch(words[place])
    assert script and (ROOT / words[place]).is_file(), words[place]
    module = importlib.import_module(f"m2i2.cli.{script[1]}")
    arguments = list(takewhile(lambda word: word not in ("|", ">"), words[place + 1 :]))
    if script[1] in ("pretrain", "finetune"):
        module.parse(arguments)
        return
    monkeypatch.setattr(module, "guarded", lambda work: 0)
    try:
        code = module.main(arguments)
    except SystemExit as end:  # of argparse: 0 after --help, 2 for what it does not know
        code = end.code
    assert not code, f"{page}: {' '.join(words)}"


def test_there_are_many() -> None:
    assert len(DOCUMENTED) > 80


def test_the_threat_model_names_tests_that_exist() -> None:
    rows = [line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if re.search(r"::\w+` \|$", line)]
    assert len(rows) > 50
    for row in rows:
        page = Path()
        for word in re.findall(r"`([^`]+)`", row.rsplit(" | ", 1)[1]):
            file, _, start = word.partition("::")
            page = ROOT / "tests" / (file if "/" in file else f"unit/{file}") if file else page
            assert re.search(rf"^def {start}", page.read_text(), re.MULTILINE), f"{page} has no {start}"


def anchors(page: Path) -> set[str]:
    """What a link may name behind # in a page: its headings as GitHub and mkdocs spell them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    """Files and anchors; nothing is asked of a network."""
    links = 0
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith(("https://", "http://")):
                continue
            links += 1
            name, _, anchor = target.partition("#")
            other = page.parent / name if name else page
            assert other.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(other), f"{page.name} links to {target}; there is {sorted(anchors(other))}"
    assert links > 100


def python_of(page: str) -> str:
    """The Python blocks of a page, one after another, as one program."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert len(blocks) >= 3
    return "\n".join(blocks)


def make_shards_of(page: str) -> None:
    """Run the page's commands that make shards."""
    made = [words for words in commands((ROOT / "docs" / page).read_text()) if words[1] == "tools/make_shards.py"]
    assert made and all(make_shards(words[2:]) == 0 for words in made)


def test_the_page_on_extending_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of("extending.md"), "docs/extending.md", "exec"), {"__name__": "extending"})


def test_the_page_on_the_loader_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_shards_of("loader.md")
    exec(compile(python_of("loader.md"), "docs/loader.md", "exec"), {"__name__": "loader"})


def test_the_page_on_python_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_shards_of("python.md")
    (tmp_path / "page.py").write_text(python_of("python.md"))
    done = run([sys.executable, "page.py"], tmp_path, {**environment(), "PYTHONPATH": str(ROOT)}, 900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "image 3: " in done.stdout and (tmp_path / "explained.png").stat().st_size


def test_the_notebook_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells, one after another, and what they count; what is stored with it is what they gave."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    book = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"]) and all(cell["outputs"] for cell in cells)
    space: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), space)
    assert space["right"] > 0.7 * space["total"] and space["right"] > 1.5 * space["baseline"]
    printed = "".join(line for cell in cells for out in cell["outputs"] for line in out.get("text", ()))
    assert f"{space['right']} of {space['total']} right" in printed


def test_pages_that_the_notebook_names_exist() -> None:
    book = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
    text = "".join(line for cell in book["cells"] if cell["cell_type"] == "markdown" for line in cell["source"])
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all((ROOT / "docs" / target).is_file() for target in targets)
