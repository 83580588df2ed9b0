"""From pretraining through finetuning to scores, through the launchers, and what they refuse."""

import json
import shutil
from pathlib import Path

import pytest

from m2i2.cli.make_shards import main as make_shards
from m2i2.data.text.cleaning import scored_answer
from tests.faults.shard_servers import ShardServer
from tests.launching import launch, succeed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of both kinds, a short pretraining and a short finetuning."""
    folder = tmp_path_factory.mktemp("answering")
    for kind in ("captions", "vqa"):
        assert make_shards([kind, "phantoms", "--output", str(folder / kind), "--count", "40", "--side", "64"]) == 0
    small = ["--preset", "tiny", "training.batch=16", "vision.image_size=64", "training.log_every=1"]
    succeed("pretrain", ["--shards", "captions", "--output", "pre", *small, "training.max_steps=2"], folder)
    words = ["--checkpoint", "pre", "--shards", "vqa", "--output", "fine", *small, "training.max_steps=6"]
    out = succeed("finetune", words, folder, 2)
    assert "all weights from pre/checkpoints/step-00000002" in out
    return folder


def test_finetuning_keeps_the_tokenizer_and_architecture_of_the_pretraining(folder: Path) -> None:
    pre, fine = (sorted((folder / run / "checkpoints").iterdir())[-1] for run in ("pre", "fine"))
    assert (pre / "tokenizer" / "vocab.txt").read_text() == (fine / "tokenizer" / "vocab.txt").read_text()
    settings = [json.loads((path / "config.json").read_text()) for path in (pre, fine)]
    assert settings[0]["text"]["vocabulary_size"] == settings[1]["text"]["vocabulary_size"]
    rows = [json.loads(line) for line in (folder / "fine" / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert rows[-1]["loss"] < rows[0]["loss"]
    for row in rows:
        assert row["slowest_rank"] in (0, 1) and row["slowest_by"] >= 1, "as in pretraining"
        assert 0 < row["goodput"] < 1 and "start" in row["goodput_lost_to"]


@pytest.mark.parametrize("mode", ["rank", "rank-official", "generate"])
def test_every_question_is_asked_and_scored(folder: Path, mode: str) -> None:
    words = ["--checkpoint", "fine", "--shards", "vqa", "--mode", mode, "--k", "8"]
    out = succeed("evaluate", words, folder)
    assert "question only" in out
    results = json.loads((folder / "fine" / f"evaluation-test-{mode}" / "results.json").read_text())
    lines = (folder / "fine" / f"evaluation-test-{mode}" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    view = results["views"]["test"]["model"]
    assert view["overall"]["total"] == len(rows) == view["closed"]["total"] + view["open"]["total"] > 50
    for row in rows:
        assert row["correct"] == (scored_answer(row["prediction"]) == scored_answer(row["answer"]))
        assert row["best"][0][0] == row["prediction"]
    assert view["overall"]["correct"] == sum(row["correct"] for row in rows)
    assert results["candidates"]["count"] > 10
    assert "TEST" not in results["protocol"]["name"]
    assert results["protocol"]["habits"]
    assert results["configuration"]["vision"]["image_size"] == 64


def test_finetuning_goes_on_and_evaluation_asks_from_a_url(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "fine", tmp_path / "fine")
    (tmp_path / "pre").symlink_to(folder / "pre")
    answers = []
    with ShardServer(folder / "vqa") as server:
        words = ["--config", tmp_path / "fine" / "settings.json", "--output", "fine", "training.max_steps=7"]
        out = succeed("finetune", [*words, "--shards", server.url, "data.cache_folder=cache"], tmp_path)
        assert "Resuming after step 6" in out and "Done: 7 steps" in out
        for place in (folder / "vqa", server.url):
            words = ["--checkpoint", "fine", "--shards", place, "--mode", "rank-official", "--output", "out"]
            succeed("evaluate", [*words, "--cache-folder", "cache"], tmp_path)
            answers.append((tmp_path / "out" / "predictions.jsonl").read_text())
        assert answers[0] == answers[1]
        assert max(count for file, count in server.requests.items() if file.endswith(".tar")) == 1


def test_ranking_exactly_and_officially_mostly_agree(folder: Path) -> None:
    found = []
    for mode in ("rank", "rank-official"):
        words = ["--checkpoint", "fine", "--shards", "vqa", "--mode", mode, "--k", "1000", "--output", f"out-{mode}"]
        succeed("evaluate", [*words, "--precision", "float32"], folder)
        lines = (folder / f"out-{mode}" / "predictions.jsonl").read_text().splitlines()
        found.append([json.loads(line)["best"][0][0] for line in lines])
    agree = sum(a == b for a, b in zip(*found, strict=True))
    assert agree > 0.6 * len(found[0]), "they differ only in counting the first token twice"


@pytest.mark.parametrize(
    ("launcher", "words", "message"),
    [
        ("pretrain", ["--preset", "huge"], "invalid choice: 'huge'"),
        ("pretrain", ["trainig.epochs=3"], "Unknown setting 'trainig.epochs'"),
        ("pretrain", ["--epochs", "3"], "Unknown option '--epochs'"),
        ("pretrain", ["--shards", "nowhere", "--preset", "tiny"], "nowhere has no index.json"),
        ("pretrain", ["--shards", "vqa", "--preset", "tiny"], "vqa holds vqa shards; pretraining needs captions"),
        ("pretrain", ["--deepspeed_config", "none.json"], "Cannot read the DeepSpeed configuration none.json"),
        ("pretrain", ["--shards", "captions", "--preset", "tiny", "--output", "captions"], "holds other data"),
        ("finetune", ["--shards", "captions", "--checkpoint", "pre", "--preset", "tiny"], "captions holds captions shards"),
        ("finetune", ["--shards", "vqa", "--preset", "tiny"], "Which tokenizer?"),
        ("finetune", ["--shards", "vqa", "--checkpoint", "empty", "--preset", "tiny"], "empty holds no complete checkpoint"),
        ("evaluate", ["--shards", "vqa", "--checkpoint", "pre"], "is a checkpoint of pretraining, not of finetuning"),
        ("evaluate", ["--shards", "vqa", "--checkpoint", "fine", "--protocol", "mine"], "There is no protocol 'mine'"),
        ("evaluate", ["--shards", "vqa", "--checkpoint", "fine", "--split", "dev"], "no split 'dev'; it has train, val, test"),
    ],
)
def test_bad_input_is_one_paragraph(folder: Path, launcher: str, words: list[str], message: str) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    done = launch(launcher, words, folder)
    assert done.returncode == 2, done.stderr[-2000:]
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tokenizer_of_another_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sorted((folder / "fine" / "checkpoints").iterdir())[-1] / "tokenizer", tmp_path / "tokenizer")
    vocabulary = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["left"], words["right"] = words["right"], words["left"]
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(vocabulary))
    other = f"start.tokenizer={tmp_path / 'tokenizer'}"
    done = launch("finetune", ["--shards", "vqa", "--checkpoint", "pre", "--preset", "tiny", "--output", "x", other], folder)
    assert done.returncode == 2
    assert "The tokenizer given is not the one that" in done.stderr


@pytest.mark.parametrize("launcher", ["pretrain", "finetune", "evaluate"])
def test_help_teaches(launcher: str, tmp_path: Path) -> None:
    out = succeed(launcher, ["--help"], tmp_path)
    assert "examples:" in out
    if launcher != "evaluate":
        assert "optimizer.lr=" in out
        assert "pixels" in out
