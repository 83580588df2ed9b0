"""What the report on a GPU measures: the lines of the table of docs/speed.md's targets, their commands and their limits."""

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from m2i2.errors import M2I2Error
from m2i2.files import read_rows
from m2i2.performance.gpu_report import Found, Job, Line, Place, end, json_of

_ROOT = Path(__file__).resolve().parents[2]
_QUESTIONS = 451
"""Of VQA-RAD's test set."""
_CAPTIONS, _VQA, _TENTH = "shards-captions", "shards-vqa", "tenth-step-first"
_WITHOUT_STARTS = ("start.text=", "start.image=", "validation.every=0", "monitor.tensorboard=off")
"""Random weights: nothing is downloaded. Without validation."""
_SMALL = ("vision.image_size=168", "vision.patch_size=14")
_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "CUDA_CACHE_PATH")


def jobs() -> list[Job]:
    """All of them, those first that matter most."""
    return [*_steps(), *_rankings(), *_engines(), *_data(), *_commands(), *_tests(), *_variants()]


def _steps() -> list[Job]:
    """Optimizer steps on drawn batches."""
    launches = Line("host API launches of that, per step", "host_launches_per_step", 240, "launches", True, "operators_per_step")
    memory = Line("memory of that, reserved", "device_reserved_gb", 40, "GB", True, "host_peak_rss_gb")
    found = []
    for batch, target, more, seconds in ((32, 700, launches, 90), (256, 1170, memory, 90)):
        line = Line(f"pretraining, paper, batch {batch}, 25 tokens", "pairs_per_s", target, "pairs/s")
        found.append(Job(f"pretrain-{batch}", _benchmark("pretrain", "paper", batch), seconds, (line, more)))
    for batch, target in ((64, 600), (8, 200)):
        line = Line(f"finetuning, 384 px, 16 + 8 tokens, distilled, batch {batch}", "pairs_per_s", target, "questions/s")
        found.append(Job(f"finetune-{batch}", _benchmark("finetune", "paper", batch), 60, (line,)))
    line = Line("small (ViT-S/14, 168 px), batch 256", "pairs_per_s", 4000, "pairs/s")
    found.append(Job("pretrain-small", _benchmark("pretrain", "small", 256, _SMALL), 60, (line,)))
    return found


def _variants() -> list[Job]:
    """What one choice costs or saves, at the paper's batch; nothing is asked of these."""
    found = []
    settings = {"compiled": "training.compile=true", "launched": "training.graphs=false", "cast": "training.half_weights=off"}
    for name, setting in settings.items():
        line = Line(f"pretraining, paper, batch 32, {setting}", "pairs_per_s", None, "pairs/s")
        found.append(Job(f"pretrain-32-{name}", _benchmark("pretrain", "paper", 32, (setting,), name), 120, (line,)))
    return found


def _rankings() -> list[Job]:
    alone = Line("ranking of 517 candidates, one question alone, latency", "ms_per_question", 20, "ms", True)
    together = Line("ranking of 517 candidates, 16 questions together, per question", "ms_per_question", 3, "ms", True)
    return [Job("ranking-1", _ranking(1, 1), 60, (alone,)), Job("ranking-16", _ranking(16, 8), 60, (together,))]


def _engines() -> list[Job]:
    ratio = Line("engine over plain PyTorch, same kernels, batch 32, one rank", "ratio", 1.05, "x the time", True)
    host = Line("two ranks on one card over gloo: engine's host time per step", "engine_host_ms", 15, "ms", True)
    deepspeed = Line("two ranks on one card over gloo: DeepSpeed's own engine's", "deepspeed_host_ms", None, "ms", True)
    return [
        Job("engine", _benchmark("engine", "paper", 32), 90, (ratio,)),
        Job("two-ranks", _two_ranks, 150, (host, deepspeed)),
    ]


def _data() -> list[Job]:
    """Shards of phantoms, as large as real images are stored, through the loader."""
    paper = Line("phantom shards through 8 workers over batches from memory, paper at 256", "ratio", 0.97, "")
    small = Line("phantom shards through 8 workers over batches from memory, small at 256", "ratio", 0.9, "")
    return [
        Job(_CAPTIONS, _make_shards("captions", 2560, 288), 90),
        Job("fed-paper", _fed("paper"), 90, (paper,), _CAPTIONS),
        Job("fed-small", _fed("small", _SMALL), 60, (small,), _CAPTIONS),
    ]


def _commands() -> list[Job]:
    """Whole commands, as a user starts them."""
    first = Line("from the command to the tenth step, first time", "seconds", 90, "s", True)
    again = Line("from the command to the tenth step, again", "seconds", 25, "s", True)
    evaluation = Line(f"evaluation, small, {_QUESTIONS} questions about synthetic images", "seconds", 4, "s", True)
    return [
        Job(_TENTH, _tenth_step(afresh=True), 150, (first,), _CAPTIONS),
        Job("tenth-step-again", _tenth_step(afresh=False), 60, (again,), _TENTH),
        Job(_VQA, _make_shards("vqa", 400, 168), 60),
        Job("evaluation", _evaluation, 150, (evaluation,), _VQA),
    ]


def _tests() -> list[Job]:
    """Whether what was measured is right."""
    failed = Line("tests on the device (tests/cuda) that failed", "failed", 0, "tests", True)
    return [Job("tests", _device_tests, 240, (Line("tests on the device that passed", "passed", None, "tests"), failed))]


Work = Callable[[Place, float], Found]


def _script(name: str) -> list[str]:
    return [sys.executable, str(_ROOT / name)]


def _sizes(place: Place, preset: str, batch: int, settings: Sequence[str] = (), steps: int = 20) -> list[str]:
    """Preset, batch, steps and settings; with --quick those of a trial."""
    if place.quick:
        return ["--preset", "tiny", "--batch", "4", "--steps", "1", "--warm-up", "1"]
    return ["--preset", preset, "--batch", str(batch), "--steps", str(steps), "--warm-up", "8", *settings]


def _benchmark(stage: str, preset: str, batch: int, settings: Sequence[str] = (), variant: str = "") -> Work:
    """A stage of tools/benchmark.py; steps of training are recorded and profiled."""

    def work(place: Place, seconds: float) -> Found:
        name = f"{stage}-{preset}-{batch}{variant and '-' + variant}"
        words = [*_script("tools/benchmark.py"), stage, "--json", *_sizes(place, preset, batch, settings)]
        if stage in ("pretrain", "finetune"):
            words += ["--profile", str(place.output / "traces" / name), "--record", str(place.output / "speed.csv")]
        return json_of(place.run(name, words, seconds), "seconds_per_step_engine" if stage == "engine" else "pairs_per_s")

    return work


def _ranking(questions: int, images: int) -> Work:
    def work(place: Place, seconds: float) -> Found:
        counts = {"questions": questions, "images": images, "rounds": 1 if place.quick else 20}
        options = [word for name, value in counts.items() for word in (f"--{name}", str(value))]
        words = [*_script("tools/benchmark.py"), "ranking", "--json", "--preset", "tiny" if place.quick else "paper", *options]
        words += ["--record", str(place.output / "speed.csv")]
        found = json_of(place.run(f"ranking-{questions}", words, seconds), "seconds_per_question")
        return {**found, "ms_per_question": 1e3 * found["seconds_per_question"]}

    return work


def _two_ranks(place: Place, seconds: float) -> Found:
    """The engine's stage on two ranks that share the card."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*launcher, str(_ROOT / "tools" / "benchmark.py"), "engine", "--json", *_sizes(place, "paper", 32, steps=5)]
    return json_of(place.run("two-ranks", words, seconds, M2I2_SHARE_GPU="1"), "engine_host_ms")


_OUTCOME = re.compile(r"(\d+) (passed|failed|error|skipped)")


def _device_tests(place: Place, seconds: float) -> Found:
    """How many tests of tests/cuda passed and failed; tests that fail are counted, and their log says why."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    some = ["-k", "attention or ahead"] if place.quick else []
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--device",
        device,
        str(_ROOT / "tests" / "cuda"),
        *some,
    ]
    text = place.run("tests", words, seconds, accepted=(0, 1))  # 1: some have failed
    found = {outcome: int(number) for number, outcome in _OUTCOME.findall(text.splitlines()[-1])}
    if "passed" not in found:
        raise M2I2Error(f"no test ran: {text.splitlines()[-1][:200]} (see {place.output / 'logs' / 'tests.txt'})")
    return {"passed": found["passed"], "failed": found.get("failed", 0) + found.get("error", 0)}


def _make_shards(kind: str, count: int, side: int) -> Work:
    def work(place: Place, seconds: float) -> Found:
        folder = place.output / "shards" / kind
        drawn, stored = (24, 64) if place.quick else (count, side)
        words = [*_script("tools/make_shards.py"), kind, "phantoms", "--output", str(folder)]
        place.run(f"shards-{kind}", [*words, "--count", str(drawn), "--side", str(stored)], seconds)
        return {}

    return work


def _fed(preset: str, settings: Sequence[str] = ()) -> Work:
    def work(place: Place, seconds: float) -> Found:
        workers = f"data.workers={1 if place.quick else 8}"
        words = [*_script("tools/benchmark.py"), "fed", "--json", "--shards", str(place.output / "shards" / "captions")]
        text = place.run(f"fed-{preset}", [*words, *_sizes(place, preset, 256, settings), workers], seconds)
        return json_of(text, "pairs_per_s_fed")

    return work


def _tenth_step(*, afresh: bool) -> Work:
    """Seconds from starting the launcher until its log holds the tenth step; the run is ended then."""

    def work(place: Place, seconds: float) -> Found:
        caches, run = place.output / "caches", place.output / "runs" / f"tenth-step-{'first' if afresh else 'again'}"
        if afresh:
            shutil.rmtree(caches, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)
        step = 2 if place.quick else 10
        words = [*_script("launchers/pretrain.py"), "--preset", "tiny" if place.quick else "paper", "--output", str(run)]
        words += ["--shards", str(place.output / "shards" / "captions"), *_WITHOUT_STARTS, "training.log_every=1"]
        words += ["training.batch=4"] if place.quick else []
        log = place.output / "logs" / f"{run.name}.txt"
        with log.open("w") as out:
            started = time.monotonic()
            with place.start(words, out, **{name: str(caches / name) for name in _CACHES}) as process:
                try:
                    while time.monotonic() - started < seconds:
                        if _logged(run / "log.jsonl") >= step:
                            return {"seconds": time.monotonic() - started}
                        if process.poll() is not None:
                            raise M2I2Error(f"the run ended with code {process.returncode} before step {step} (see {log})")
                        time.sleep(0.02)
                    raise M2I2Error(f"step {step} was not done in {seconds:.0f} s (see {log})")
                finally:
                    end(process)

    return work


def _logged(path: Path) -> int:
    """The last step that a run's log holds."""
    try:
        return int(read_rows(path)[-1]["step"])
    except (OSError, IndexError, ValueError, KeyError):  # not there, or not whole yet
        return 0


def _evaluation(place: Place, seconds: float) -> Found:
    """A small model, pretrained for two steps and then finetuned, answers test questions; seconds of as many as VQA-RAD has."""
    deadline, preset = time.monotonic() + seconds, "tiny" if place.quick else "small"
    runs, vqa = place.output / "runs", str(place.output / "shards" / "vqa")
    pretrained, finetuned = str(runs / "pretrained"), str(runs / "finetuned")
    for folder in (pretrained, finetuned):
        shutil.rmtree(folder, ignore_errors=True)
    common = ["training.batch=4", "data.workers=0"] if place.quick else []
    steps = 2 if place.quick else 200
    shards = str(place.output / "shards" / "captions")
    for name, words in (
        ("pretrain", ["--shards", shards, "--output", pretrained, *_WITHOUT_STARTS, "training.max_steps=2", *common]),
        ("finetune", ["--checkpoint", pretrained, "--shards", vqa, "--output", finetuned, f"training.max_steps={steps}", *common]),
    ):
        command = [*_script(f"launchers/{name}.py"), "--preset", preset, *words]
        place.run(f"evaluation-{name}", command, deadline - time.monotonic())
    words = [*_script("launchers/evaluate.py"), "--checkpoint", finetuned, "--shards", vqa, "--output", str(runs / "evaluation")]
    words += ["--image-dependence", "0"]  # it is timed, and only the questions' own images count
    place.run("evaluation", words, deadline - time.monotonic())
    results = json.loads((runs / "evaluation" / "results.json").read_text())
    return {"seconds": _QUESTIONS * results["seconds_per_question"]}
