"""Shards: the same bytes from any number of workers and through kills, readable by stock webdataset, faults found."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m2i2.cli.make_shards import main
from m2i2.data.loading.corpus import Corpus
from m2i2.data.shards.split import ShardSplit
from m2i2.errors import M2I2Error


def pairs(folder: Path, count: int = 23, **changes: Any) -> Path:
    """A JSON data set of ``count`` small images; ``changes`` replace records by their number as r0=, r1= ..."""
    folder.mkdir(parents=True)
    records = []
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 255, (50 + i, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"scan.{i}.png")
        caption: Any = [f"view {i}", f"scan {i}"] if i % 5 == 0 else f'caption {i}, with "quotes"\nand lines'
        records.append({"image": f"scan.{i}.png", "caption": caption, "split": "train" if i < 18 else "val"})
    for key, change in changes.items():
        records[int(key[1:])] |= change
    (folder / "pairs.json").write_text(json.dumps(records))
    return folder / "pairs.json"


def make(source: Path, output: Path, *words: str) -> int:
    base = ["captions", "json", str(source), "--output", str(output), "--side", "32", "--samples-per-shard", "5"]
    return main([*base, *words])


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    source = pairs(tmp_path / "data")
    assert make(source, tmp_path / "one", "--workers", "1") == make(source, tmp_path / "two", "--workers", "3") == 0
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one == two
    assert [n for n in one if n.endswith(".tar")] == [f"train-00000{i}.tar" for i in range(4)] + ["val-000000.tar"]
    assert not [n for n in one if "writing" in n or "note" in n or "rows" in n], "nothing temporary stays"


def test_stock_webdataset_reads_them(tmp_path: Path) -> None:
    import webdataset

    make(pairs(tmp_path / "data"), tmp_path / "shards")
    urls = [str(p) for p in sorted((tmp_path / "shards").glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(samples) == 18
    assert samples[3]["__key__"] == "scan_3" and min(samples[3]["jpg"].size) == 32
    assert samples[5]["json"]["captions"] == ["view 5", "scan 5"]


def test_items_read_back_by_number(tmp_path: Path) -> None:
    make(pairs(tmp_path / "data"), tmp_path / "shards")
    split = ShardSplit.open(tmp_path / "shards", "train", "captions")
    assert len(split) == 18 and split.shard_items.tolist() == [5, 5, 5, 3]
    samples = [split.read(i) for i in range(18)]
    assert [s.key for s in samples] == [f"scan_{i}" for i in range(18)]
    assert samples[1].captions == ('caption 1, with "quotes"\nand lines',)
    assert Image.open(io.BytesIO(samples[9].image)).size == (35, 32)
    again = pickle.loads(pickle.dumps(split))
    assert again.read(7) == split.read(7)
    both = Corpus.open([tmp_path / "shards", tmp_path / "shards"], "train", "captions")
    assert len(both) == 36 and both.read(20) == split.read(2) and both.read(17) == split.read(17)


def test_bytes_are_kept_where_asked(tmp_path: Path) -> None:
    source = pairs(tmp_path / "data")
    make(source, tmp_path / "shards", "--keep-bytes")
    sample = ShardSplit.open(tmp_path / "shards", "val", "captions").read(0)
    assert sample.image == (tmp_path / "data" / "scan.18.png").read_bytes()


def test_a_killed_build_continues_to_the_same_bytes(tmp_path: Path) -> None:
    source = pairs(tmp_path / "data", 400)
    make(source, tmp_path / "whole")
    words = ["captions", "json", str(source), "--output", str(tmp_path / "killed"), "--side", "32"]
    words += ["--samples-per-shard", "5", "--workers", "2"]
    program = "from m2i2.cli.make_shards import main; raise SystemExit(main())"
    kills = 0
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        have = len(list((tmp_path / "killed").glob("*.tar")))
        end = time.monotonic() + 300
        while process.poll() is None and len(list((tmp_path / "killed").glob("*.tar"))) < have + 20:
            assert time.monotonic() < end
            time.sleep(0.005)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        assert not (tmp_path / "killed" / "index.json").exists()
    assert kills >= 2, "it was killed while it worked"
    assert make(source, tmp_path / "killed") == 0
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert killed == whole


def test_rejects_are_listed_and_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pairs(tmp_path / "data", r3={"caption": "  "}, r7={"image": "gone.png"})
    data = (tmp_path / "data" / "scan.9.png").read_bytes()
    (tmp_path / "data" / "scan.9.png").write_bytes(data[: len(data) // 2])
    assert make(source, tmp_path / "shards") == 2
    assert "3 of 23 records were rejected, more than --max-rejects 0.01" in capsys.readouterr().err
    assert not (tmp_path / "shards" / "index.json").exists()
    assert make(source, tmp_path / "shards", "--max-rejects", "0.2") == 0
    rows = [json.loads(line) for line in (tmp_path / "shards" / "rejects.jsonl").read_text().splitlines()]
    assert [(r["key"], r["reason"][:20]) for r in rows] == [
        ("scan_3", "empty caption"),
        ("gone", "image file missing"),
        ("scan_9", "The image scan_9 can"),
    ]
    split = ShardSplit.open(tmp_path / "shards", "train", "captions")
    assert [split.read(i).key for i in (2, 3)] == ["scan_2", "scan_4"]
    assert make(source, tmp_path / "pixels", "--max-rejects", "1", "--max-pixels", "4000") == 0
    assert "more than the bound" in (tmp_path / "pixels" / "rejects.jsonl").read_text()


def test_other_data_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pairs(tmp_path / "data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert make(source, tmp_path / "full") == 2
    assert "holds other data" in capsys.readouterr().err
    assert contents(tmp_path / "full") == {"thesis.txt": b"mine"}
    assert make(source, tmp_path / "shards") == 0
    before = contents(tmp_path / "shards")
    assert make(source, tmp_path / "shards", "--quality", "50") == 2
    assert "with other settings" in capsys.readouterr().err
    assert make(source, tmp_path / "shards") == 0
    assert "complete already" in capsys.readouterr().out
    assert contents(tmp_path / "shards") == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d[:700] + bytes([d[700] ^ 1]) + d[701:], "does not match its hash"),
        (lambda d: d[: len(d) // 2], "truncated or the index is stale"),
        (lambda d: d[:-1024], "truncated or the index is stale"),
    ],
)
def test_damaged_shards_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str) -> None:
    make(pairs(tmp_path / "data"), tmp_path / "shards")
    assert main(["verify", str(tmp_path / "shards")]) == 0
    path = tmp_path / "shards" / "train-000001.tar"
    path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "shards")]) == 2
    assert "train-000001.tar: does not match its hash" in (error := capsys.readouterr().err) or "cannot be read" in error
    if "stale" in message:
        with pytest.raises(M2I2Error, match=message):
            ShardSplit.open(tmp_path / "shards", "train", "captions")


def test_wrong_folders_say_what_they_hold(tmp_path: Path) -> None:
    make(pairs(tmp_path / "data"), tmp_path / "shards")
    with pytest.raises(M2I2Error, match="holds captions shards; finetuning and evaluation needs vqa"):
        ShardSplit.open(tmp_path / "shards", "train", "vqa")
    with pytest.raises(M2I2Error, match="no split 'test'; it has train, val"):
        ShardSplit.open(tmp_path / "shards", "test", "captions")
    with pytest.raises(M2I2Error, match="there is no such folder"):
        ShardSplit.open(tmp_path / "nowhere", "train", "captions")
    (tmp_path / "shards" / "train-000002.tar").unlink()
    with pytest.raises(M2I2Error, match=r"train-000002\.tar of the index cannot be read"):
        ShardSplit.open(tmp_path / "shards", "train", "captions")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r4": {"image": "../scan.3.png"}}, "leads out of"),
        ({"r4": {"caption": 5}}, "record 4: the field 'caption' must be"),
        ({"r4": {"image": None}}, "record 4: the field 'image' is missing"),
        ({"r19": {"split": "holdout"}}, "the split 'holdout' is not known; the names of splits are train, training, val"),
    ],
)
def test_malformed_records_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    assert make(pairs(tmp_path / "data", **change), tmp_path / "shards", "--workers", "2") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "shards" / "index.json").exists()


def test_other_data_of_the_same_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = pairs(tmp_path / "one"), pairs(tmp_path / "two", r2={"caption": "another"})
    assert make(one, tmp_path / "shards") == 0
    before = contents(tmp_path / "shards")
    assert make(two, tmp_path / "shards") == 2
    assert "is complete, but holds other data than json gives now" in capsys.readouterr().err
    assert contents(tmp_path / "shards") == before
    moved = tmp_path / "moved"
    (tmp_path / "one").rename(moved)
    assert make(moved / "pairs.json", tmp_path / "shards") == 0, "the same data at another place is the same data"


def unfinished(source: Path, output: Path) -> None:
    """A build that is refused because its last record has a damaged picture, whole afterwards; finished shards stay."""
    picture = source.parent / "scan.22.png"
    good = picture.read_bytes()
    picture.write_bytes(good[: len(good) // 2])
    assert make(source, output, "--workers", "1") == 2
    picture.write_bytes(good)
    assert (output / "train-000001.note.json").exists() and not (output / "index.json").exists()


def test_an_unfinished_build_takes_no_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished(pairs(tmp_path / "one"), tmp_path / "shards")
    other = pairs(tmp_path / "two")
    other.write_text(other.read_text().replace("scan.", "film."))
    for picture in (tmp_path / "two").glob("*.png"):
        picture.rename(picture.with_name(picture.name.replace("scan.", "film.")))
    capsys.readouterr()
    assert make(other, tmp_path / "shards") == 2
    assert "train-000000.tar was built from other data" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_mended_data_is_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str) -> None:
    source = pairs(tmp_path / "data")
    assert make(source, tmp_path / "whole") == 0
    picture = tmp_path / "data" / "scan.9.png"
    good = picture.read_bytes()
    picture.write_bytes(good[: len(good) // 2] + bytes(len(good) - len(good) // 2))  # of the same size
    assert make(source, tmp_path / "repaired", "--workers", workers) == 2
    picture.write_bytes(good)
    capsys.readouterr()
    assert make(source, tmp_path / "repaired", "--workers", workers) == 0
    assert "4 shard(s) were there from an earlier run" in capsys.readouterr().out
    assert contents(tmp_path / "repaired") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["note.json", "rows.npy", "tar"])
def test_a_damaged_leftover_is_written_again(tmp_path: Path, damage: str) -> None:
    source = pairs(tmp_path / "data")
    assert make(source, tmp_path / "whole") == 0
    unfinished(source, tmp_path / "shards")
    (tmp_path / "shards" / f"train-000001.{damage}").write_bytes(b"")
    assert make(source, tmp_path / "shards") == 0
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def test_texts_that_are_no_unicode_are_rejected(tmp_path: Path) -> None:
    source = pairs(tmp_path / "data", r1={"caption": "\ud800 half a character"})
    assert make(source, tmp_path / "shards", "--max-rejects", "0.1") == 0
    assert "a text is not valid Unicode" in (tmp_path / "shards" / "rejects.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-rejects", "nan"], "must lie between 0 and 1"),
        (["--max-rejects", "5"], "must lie between 0 and 1"),
        (["--samples-per-shard", "0"], "must be at least 1"),
        (["--workers", "0"], "must be at least 1"),
        (["--split", "a/b"], "the split 'a/b' is not known"),
        (["--language", "zh"], "json does not take --language"),
    ],
)
def test_bad_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert make(pairs(tmp_path / "data", 3, r0={"split": None}), tmp_path / "shards", *words) == 2
    assert message in capsys.readouterr().err


def test_a_full_disk_is_a_plain_error(tmp_path: Path) -> None:
    source = pairs(tmp_path / "data")
    run = "from m2i2.cli.make_shards import main; raise SystemExit(main())"
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); {run}"
    words = ["captions", "json", str(source), "--output", str(tmp_path / "shards"), "--side", "32"]
    failed = subprocess.run([sys.executable, "-c", limited, *words], capture_output=True, text=True)
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    assert "Finished shards stay; fix the cause and run the same command again" in failed.stderr
    assert not (tmp_path / "shards" / "index.json").exists()
    assert subprocess.run([sys.executable, "-c", run, *words], capture_output=True).returncode == 0
    assert main(["verify", str(tmp_path / "shards")]) == 0


def test_a_corrected_command_may_use_the_folder_of_one_that_began_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (9, 99, 199)).save(tmp_path / "a.png")
    (tmp_path / "mine.csv").write_text("scan,finding\na.png,a chest\n")
    words = ["captions", "json", str(tmp_path / "mine.csv"), "--output", str(tmp_path / "s"), "--workers", "1"]
    assert main(words) == 2, "the columns have other names"
    assert main([*words, "--columns", "image=scan,caption=finding"]) == 0
    assert main(words) == 2, "this folder holds something"
    assert (tmp_path / "s" / "index.json").exists()


def test_a_second_build_into_one_folder_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["captions", "phantoms", "--output", str(tmp_path / "s"), "--side", "64", "--workers", "1"]
    code = "import sys; from m2i2.cli.make_shards import main; sys.exit(main(sys.argv[1:]))"
    first = subprocess.Popen([sys.executable, "-c", code, *words, "--count", "100000"], stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "s" / "building.json").exists():
            assert first.poll() is None
            time.sleep(0.05)
        for count in ("100000", "40"):
            assert main([*words, "--count", count]) == 2
            said = capsys.readouterr().err
            assert f"A build of {tmp_path / 's'} is under way in another process (process {first.pid} on " in said
    finally:
        first.kill()
        first.wait()
    assert main([*words, "--count", "40"]) == 2
    assert "was begun from another source or with other settings" in capsys.readouterr().err, "a killed build holds nothing"


def test_reasons_of_rejects_are_not_garbled_by_the_records_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for name in ("a", "e", "image", "file", "decoded"):
        (tmp_path / f"{name}.png").write_bytes(b"no picture")
        rows.append({"image": f"{name}.png", "caption": "c", "split": "train"})
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    rows.append({"image": "good.png", "caption": "c", "split": "train"})
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    assert main(["captions", "json", str(tmp_path / "pairs.json"), "--output", str(tmp_path / "s"), "--workers", "1"]) == 2
    rejects = [json.loads(line) for line in (tmp_path / "s" / "rejects.jsonl").read_text().split("\n") if line]
    assert [reject["key"] for reject in rejects] == ["a", "e", "image", "file", "decoded"]
    assert all(reject["reason"].startswith(f"The image {reject['key']} cannot be decoded") for reject in rejects)
    assert "(5 x The image ... cannot be decoded: it is damaged" in capsys.readouterr().err
