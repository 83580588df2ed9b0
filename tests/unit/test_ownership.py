"""Places that other users may write: a planted link is not followed, a foreign folder not used, an unfinished file not guessed."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from m2i2.cli.report import main as report
from m2i2.config import CacheConfig
from m2i2.data.shards.cache import Cache, Entry
from m2i2.data.shards.storage import Unavailable
from m2i2.errors import M2I2Error
from m2i2.files import append_text, replacing, write_text
from m2i2.locking import lock
from m2i2.training.lines import StepLines
from m2i2.workflows.run_folder import claim_run

CONTENT = b"a shard's bytes"
ENTRY = Entry("3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b", len(CONTENT))
"""Not the hash of the content: the cache compares hashes where it is asked to, and the fetch before."""


def fetch(descriptor: int) -> None:
    os.pwrite(descriptor, CONTENT, 0)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file that a link of somebody else points at."""
    path = tmp_path / "mine"
    path.write_text("the user's own")
    return path


# --- files


@pytest.mark.parametrize("name", ["file", ".file.writing"])
def test_a_file_is_written_beside_a_planted_link_and_over_it(tmp_path: Path, mine: Path, name: str) -> None:
    (tmp_path / name).symlink_to(mine)
    write_text(tmp_path / "file", "new")
    assert mine.read_text() == "the user's own"
    assert (tmp_path / "file").read_text() == "new" and not (tmp_path / "file").is_symlink()


def test_unfinished_files_have_a_name_that_nobody_knows_before_and_go_after_an_error(tmp_path: Path) -> None:
    names = set()

    def fail() -> None:
        with replacing(tmp_path / "file") as file:
            file.write(b"half")
            names.add(next(tmp_path.iterdir()).name)
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
    assert len(names) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "write",
    [
        lambda path: append_text(path, "more"),
        lambda path: StepLines(path, 0).add({"step": 1}),
        lambda path: lock(path.parent),
    ],
    ids=["appended text", "a run's lines", "a run's lock"],
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_appended_or_locked_is_a_file_and_no_link(
    tmp_path: Path, mine: Path, write: Callable[[Path], None], kind: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "lock"
    if kind == "link":
        path.symlink_to(mine)
    else:
        os.mkfifo(path)
    with pytest.raises((OSError, M2I2Error), match=r"symbolic link|not a regular file|No such device"):
        write(path)
    assert mine.read_text() == "the user's own"


# --- runs


def test_a_new_run_is_for_its_user_alone(tmp_path: Path) -> None:
    claim_run(tmp_path / "runs" / "mine")
    assert stat.S_IMODE((tmp_path / "runs" / "mine").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    claim_run(tmp_path / "open")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o755, "the user's own choice"


def planted(folder: Path, how: str) -> None:
    """Make a folder one that others write."""
    folder.mkdir()
    if how == "everybody":
        folder.chmod(0o777)
    elif how == "group":
        folder.chmod(0o775)
    else:
        if os.geteuid():
            pytest.skip("only root gives a folder away")
        os.chown(folder, 12345, -1)


@pytest.mark.parametrize(
    ("how", "says"), [("everybody", "everybody may write in the folder"), ("another user", "belongs to another user, number 12345")]
)
def test_a_run_in_a_folder_of_others_is_refused(tmp_path: Path, how: str, says: str) -> None:
    planted(tmp_path / "run", how)
    with pytest.raises(M2I2Error, match=rf"Cannot write to .*{says}.* Choose another --output"):
        claim_run(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


# --- the cache


def cache(folder: Path) -> Cache:
    return Cache(CacheConfig(cache_folder=str(folder), cache_gb=1, cache_timeout=1))


@pytest.mark.parametrize("how", ["everybody", "group", "another user"])
def test_a_cache_of_others_is_refused(tmp_path: Path, mine: Path, how: str) -> None:
    planted(tmp_path / "cache", how)
    for ending in ("", ".partial", ".lock"):
        (tmp_path / "cache" / f"{ENTRY.sha256}{ending}").symlink_to(mine)
    with pytest.raises(Unavailable, match=r"cannot be used: .*Name a folder of your own on a local disk: data\.cache_folder"):
        cache(tmp_path / "cache").kept(ENTRY, fetch)
    assert mine.read_text() == "the user's own"


@pytest.mark.parametrize("ending", ["", ".partial", ".lock"])
def test_no_link_in_the_cache_is_followed(tmp_path: Path, mine: Path, ending: str) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    (folder / f"{ENTRY.sha256}{ending}").symlink_to(mine)
    if ending == ".partial":  # no name that is used any more
        with cache(folder).held(ENTRY, fetch) as descriptor:
            assert os.pread(descriptor, 99, 0) == CONTENT
    else:
        with pytest.raises(Unavailable, match="it is a symbolic link"):
            cache(folder).kept(ENTRY, fetch)
    assert mine.read_text() == "the user's own"


def test_a_hard_link_in_the_cache_is_refused(tmp_path: Path, mine: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    (folder / f"{ENTRY.sha256}.lock").hardlink_to(mine)
    with pytest.raises(Unavailable, match="second name elsewhere"):
        cache(folder).kept(ENTRY, fetch)


def test_partial_files_of_the_cache_cannot_be_guessed_and_are_private(tmp_path: Path) -> None:
    seen = []

    def look(descriptor: int) -> None:
        seen.append({path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cache").iterdir()})
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cache(tmp_path / "cache").kept(ENTRY, look)
    first, second = ([name for name in found if name.endswith(".partial")] for found in seen)
    assert len(first) == len(second) == 1 and first != second
    assert all(mode == 0o600 for found in seen for mode in found.values())
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


# --- reports


@pytest.mark.parametrize(
    "name",
    [
        "settings.json",
        "log.jsonl",
        "evaluation/results.json",
        "evaluation/predictions.jsonl",
        "validation/reconstructions-00000001.png",
        "evaluation",
    ],
)
def test_a_report_follows_no_link_out_of_its_run(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text('{"results": "private"}\n')
    (secret / "results.json").write_text("{}")
    run = tmp_path / "run"
    for folder in ("validation", *(["evaluation"] if name != "evaluation" else [])):
        (run / folder).mkdir(parents=True)
    files = {"settings.json": {"training": {}}, "log.jsonl": {"step": 1, "loss": 1.0}}
    for file, content in {**files, **({"evaluation/results.json": {}} if name != "evaluation" else {})}.items():
        (run / file).write_text(json.dumps(content) + "\n")
    assert report([str(run), "--no-gradcam"]) == 0
    (run / "report.html").unlink()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(secret if name == "evaluation" else secret / "file")
    assert report([str(run), "--no-gradcam"]) == 2
    assert "a link to a place outside" in capsys.readouterr().err
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("log.jsonl", '{"step": "many", "loss": 1.0}'),
        ("log.jsonl", '{"step": 1, "loss": []}'),
        ("validation.jsonl", '{"step": 1, "image_to_text_r5": "x"}'),
        ("settings.json", '{"training": 3}'),
        ("results.json", '{"views": {"test": {"model": 3}}}'),
        ("results.json", '{"views": [1]}'),
        ("results.json", '{"answers": 3}'),
        ("predictions.jsonl", '{"correct": false}'),
        ("predictions.jsonl", '{"metadata": 3}'),
        ("starts.jsonl", '{"versions": 3}'),
    ],
)
def test_records_that_no_run_writes_are_an_error_like_others(
    tmp_path: Path, file: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("settings.json", "results.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "settings.json").write_text('{"training": {}}')
    (tmp_path / file).write_text(content + "\n")
    code = report([str(tmp_path), "--no-gradcam"])
    told = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in told
    assert code == 0 or (told.count("\n") == 1 and "are not as a run writes them" in told)


def test_a_report_of_a_run_that_is_named_by_a_link_is_made(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text("{}")
    (tmp_path / "run" / "first.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (tmp_path / "run" / "log.jsonl").symlink_to("first.jsonl")
    (tmp_path / "run" / "settings.json").write_text('{"training": {}}')
    (tmp_path / "latest").symlink_to("run")
    assert report([str(tmp_path / "latest"), "--no-gradcam"]) == 0
    assert (tmp_path / "run" / "report.html").exists()
