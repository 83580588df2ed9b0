"""A recipe from elsewhere runs nothing but this project's tools, and its paths stay in their folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from m2i2.cli.ablate import main as ablate
from m2i2.errors import M2I2Error
from m2i2.experiments.recipe import prepared, read_recipe
from m2i2.experiments.screening import is_screening, read_screening
from m2i2.options import override, to_dict
from m2i2.presets import preset
from tests.conftest import ROOT

RECIPE: dict[str, Any] = {
    "name": "drawn",
    "prepare": ["make_shards.py vqa phantoms --count 4 --side 16 --workers 1 --output shards/vqa"],
    "pretraining_shards": ["shards/captions"],
    "datasets": {"drawn": {"shards": "shards/vqa", "variants": ["no pretraining"]}},
}
TRAP = "from pathlib import Path; Path({!r}).touch()"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prepare": ["{trap} --output shards/x"]}, "is not one of the tools"),
        ({"prepare": ["../{trap} --output shards/x"]}, "is not one of the tools"),
        ({"prepare": ["audit_leakage.py --output shards/x"]}, "is not one of the tools"),
        ({"prepare": ["make_shards.py;{trap} --output shards/x"]}, "is not one of the tools"),
        ({"prepare": [""]}, "is not one of the tools"),
        ({"prepare": ["make_shards.py vqa phantoms"]}, "needs one --output"),
        ({"prepare": ["make_shards.py vqa phantoms --output a --output b"]}, "needs one --output"),
        ({"prepare": ["make_shards.py vqa phantoms --output {data}/x"]}, "needs one --output"),
        ({"prepare": ["make_shards.py vqa phantoms --output ../x"]}, "names a path outside"),
        ({"prepare": ["make_shards.py vqa phantoms --output /tmp/x"]}, "names a path outside"),
        ({"prepare": ["make_shards.py vqa phantoms --output=../x --output x"]}, "names a path outside"),
        ({"prepare": ["make_shards.py vqa slake {data}/../x --output x"]}, "names a path outside"),
        ({"prepare": ["make_shards.py vqa slake {data}//etc --output x"]}, "names a path outside"),
        ({"prepare": ["make_shards.py vqa slake ~/x --output x"]}, "names a path outside"),
        ({"prepare": ["make_shards.py vqa slake a/{data} --output x"]}, "is not the beginning of a path"),
        ({"prepare": ["make_shards.py vqa slake {data}x --output x"]}, "is not the beginning of a path"),
        ({"pretraining_shards": ["/etc"]}, "names a path outside"),
        ({"pretraining_shards": ["shards/../../x"]}, "names a path outside"),
        ({"pretraining_shards": ["--output=x"]}, "starts with -"),
        ({"datasets": {"d": {"shards": "../x"}}}, "names a path outside"),
        ({"datasets": {"d": {"shards": "x", "settings": ["--output", "x"]}}}, "is not a setting"),
        ({"start": ["start.text=/etc"]}, "names a path outside"),
        ({"start": ["start.text=../x"]}, "names a path outside"),
        ({"pretraining": ["--output=x"]}, "is not a setting"),
        ({"pretraining": ["objectives.plugins=os"]}, "would import a module"),
        ({"finetuning": ["data.cache_folder=/tmp"]}, "names a path outside"),
        ({"evaluation": ["--output", "x"]}, "set '--output' themselves"),
        ({"evaluation": ["--checkpoint=x"]}, "themselves"),
        ({"evaluation": ["--cache-folder", "/tmp"]}, "names a path outside"),
        ({"name": "../../x"}, "The name '../../x' is not valid"),
        ({"preset": "../x"}, "names a path outside"),
    ],
)
def test_what_leaves_the_house_is_refused_before_anything_runs(
    tmp_path: Path, change: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trap.py").write_text(TRAP.format(str(tmp_path / "trapped")))
    text = json.dumps({**RECIPE, **change}).replace("{trap}", str(tmp_path / "trap.py"))
    (tmp_path / "recipe.json").write_text(text)
    words = [str(tmp_path / "recipe.json"), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results"), "--jobs", "1"]
    assert ablate([*words, "--output", str(tmp_path / "R.md")]) == 2
    told = capsys.readouterr().err
    assert says in told and "recipe.json was refused" in told and told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.json", "trap.py"]


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({}, "The setting datasets.d.shards is missing"),
        ({"seeds": 2}, "The setting datasets.d.shards is missing"),
        ([], "The settings datasets.d must be an object"),
        ({"shards": None}, "datasets.d.shards=None is not text"),
        ({"shards": "s", "seeds": "2"}, ""),
    ],
)
def test_plans_of_data_sets_are_whole(tmp_path: Path, plan: Any, says: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps({**RECIPE, "datasets": {"d": plan}}))
    if not says:
        assert read_recipe(tmp_path / "r.json").plans["d"].seeds == 2
        return
    with pytest.raises(M2I2Error, match=says):
        read_recipe(tmp_path / "r.json")


OWN = sorted((ROOT / "docs" / "recipes").glob("*.json"))


@pytest.mark.parametrize("path", [path for path in OWN if not is_screening(path)], ids=lambda path: path.name)
def test_our_own_recipes_are_taken(path: Path) -> None:
    lines = [prepared(line, Path("/data")) for line in read_recipe(path).prepare]
    assert ("make_shards.py", "shards/slake") in [(tool, output) for tool, _, output in lines]
    assert any("/data/slake" in words for _, words, _ in lines)


@pytest.mark.parametrize("path", [path for path in OWN if is_screening(path)], ids=lambda path: path.name)
def test_every_cell_of_our_own_screenings_is_another_setting(path: Path) -> None:
    screening = read_screening(path)
    settings = preset(screening.preset)[screening.launcher == "finetune"]
    reference = to_dict(override(settings, screening.settings))
    for name, change in list(screening.changes.items())[1:]:
        changed = to_dict(override(settings, [*screening.settings, *change.settings]))
        assert changed != reference and change.why and change.expected, name


def test_a_recorded_cell_made_again_is_shown_beside_its_record(tmp_path: Path) -> None:
    def reproduce(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(ROOT / "tools" / "reproduce.sh"), *words]
        return subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)

    assert "  vqa-rad-full-seed-0\n" in reproduce().stdout
    missing = reproduce("small", "nothing")
    assert missing.returncode == 2 and "no record nothing" in missing.stderr
    work, cell = tmp_path / "runs" / "reproduced" / "small-vit", "vqa-rad-full-seed-0.json"
    for line in read_recipe(ROOT / "docs" / "recipes" / "small-vit.json").prepare:  # as if all had run before
        (work / prepared(line, Path("data"))[2]).mkdir(parents=True)
        (work / prepared(line, Path("data"))[2] / "index.json").touch()
    (work / "records").mkdir()
    for record in (ROOT / "docs" / "results" / "small-vit").glob("*.json"):
        shutil.copy(record, work / "records")
    again = reproduce("small-vit", cell.removesuffix(".json"))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("freeform: closed 53.0 of 185, open 7.3 of 123, overall 34.7 of 308") == 2
