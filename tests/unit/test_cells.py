"""How cells go on when their launcher ends: by a signal, in failure, or well. The launchers here are scripts of a few lines."""

import json
from pathlib import Path

import pytest

from m2i2.experiments import running
from m2i2.experiments.recipe import Recipe, cells
from m2i2.experiments.running import run, unfinished

SCRIPT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
folder.mkdir(parents=True, exist_ok=True)
codes = json.loads(pathlib.Path("codes.json").read_text())
starts = folder / "starts"
number = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (number + 1))
if number < len(codes):
    sys.exit(codes[number])
(folder / "log.jsonl").write_text('{"loss": 2.0}\\n{"loss": 1.0}\\n')
(folder / "settings.json").write_text("{}")
"""
RECIPE = Recipe(
    name="r", pretraining_shards=("s",), datasets={"d": {"shards": "q", "variants": ["full", "no MIM"], "once": ["with rewrites"]}}
)
PRETRAINING = "pretraining-full-seed-0"


def pretrain(folder: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int]) -> tuple[list[str], int]:
    """Run a pretraining whose launcher ends with ``codes`` first; the failed cells, and how often it was started."""
    (folder / "launchers").mkdir()
    (folder / "launchers" / "pretrain.py").write_text(SCRIPT)
    (folder / "codes.json").write_text(json.dumps(codes))
    monkeypatch.setattr(running, "ROOT", folder)
    failed = run(RECIPE, folder, folder / "results", jobs=1, threads=1, only=[PRETRAINING], tell=lambda text: None)
    return failed, len((folder / "runs" / PRETRAINING / "starts").read_text())


def test_a_launcher_that_a_signal_ended_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrain(tmp_path, monkeypatch, [75, 75]) == ([], 3)
    record = json.loads((tmp_path / "results" / f"{PRETRAINING}.json").read_text())
    assert record["log"] == {"first": {"loss": 2.0}, "last": {"loss": 1.0}}
    assert record["cell"]["name"] == PRETRAINING
    # its record is there, but a finetuning still needs its weights
    assert [cell.name for cell in unfinished(RECIPE, tmp_path / "results", ["d-full-seed-0"])] == [PRETRAINING, "d-full-seed-0"]
    assert unfinished(RECIPE, tmp_path / "results", [PRETRAINING]) == []


@pytest.mark.parametrize(("codes", "starts"), [([2], 1), ([75] * 9, 6)])
def test_a_launcher_that_fails_or_never_lasts_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int], starts: int
) -> None:
    assert pretrain(tmp_path, monkeypatch, codes) == ([PRETRAINING], starts)
    assert not (tmp_path / "results").exists()


def test_cells_come_by_seed_and_a_pretraining_before_its_users() -> None:
    names = [cell.name for cell in cells(RECIPE)]
    assert names == [PRETRAINING, "d-full-seed-0", "pretraining-no-mim-seed-0", "d-no-mim-seed-0", "d-with-rewrites-seed-0"]
    assert next(cell for cell in cells(RECIPE) if cell.variant == "with rewrites").needs == PRETRAINING
