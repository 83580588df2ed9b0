"""What is measured, and how: the ceiling, memory, traces, rows of measurements and plans made from them."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from m2i2.cli import benchmark as benchmark_command
from m2i2.cli import plan as plan_command
from m2i2.options import override
from m2i2.performance import engine, measuring, records
from m2i2.performance.measuring import Ceiling, StepClock, peak_memory_gb, seconds_per_launch
from m2i2.performance.plan import Machine
from m2i2.performance.plan import plan as make_plan
from m2i2.presets import preset
from m2i2.training.monitor import peak_memory
from m2i2.training.profiling import TRACE, Activity, StepProfiler, read_trace
from tests.conftest import ROOT

GPU = torch.device("cuda")
CPU = torch.device("cpu")


class FakeDevice:
    """CUDA events on a device that works for ``ms`` milliseconds between two of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: list[float]) -> None:
        self.now, self.waits, rest = 0.0, 0, iter(times)
        outer = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at = -1.0

            def record(self) -> None:
                self.at = outer.now
                outer.now += next(rest, 0.0)

            def synchronize(self) -> None:
                outer.waits += 1

            def elapsed_time(self, other: "Event") -> float:
                return other.at - self.at

        monkeypatch.setattr(torch.cuda, "Event", Event)


def test_the_ceiling_of_a_cpu_is_sampled_between_steps() -> None:
    ceiling = Ceiling(torch.float32, CPU, shapes=((64, 32, 64),))
    for _ in range(3):
        ceiling.between_steps()
    assert len(ceiling.samples) == 3 and ceiling.flops > 0


def test_launches_are_timed_together_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first measurement does not count, and the median of the others does: 3 of 1, 2, 3, 4, 50 milliseconds for 10 launches."""
    FakeDevice(monkeypatch, [v for ms in (999.0, 1.0, 2.0, 3.0, 4.0, 50.0) for v in (ms, 0.0)])
    launched: list[int] = []
    assert seconds_per_launch(lambda: launched.append(1), 10) == pytest.approx(3e-4)
    assert len(launched) == 60


def test_the_ceiling_of_a_gpu_is_that_of_large_products_after_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def rate(self: Ceiling, *shape: int) -> float:
        shapes.append(shape)
        return float(len(shapes))

    monkeypatch.setattr(Ceiling, "_rate_of_many", rate)
    ceiling = Ceiling(torch.bfloat16, GPU)
    ceiling.between_steps()
    assert not ceiling.samples, "its products would count as the steps' memory"
    assert ceiling.flops == 4.0 and shapes[:2] == [(4096, 4096, 4096), (8192, 8192, 8192)]


def test_steps_on_a_gpu_are_timed_without_waiting_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(monkeypatch, [100.0, 10.0, 30.0, 20.0])
    clock = StepClock(GPU, warm_up=1)
    for _ in range(4):
        clock.step(lambda: 0.0)
    assert device.waits == 0
    assert clock.seconds == pytest.approx([0.01, 0.03, 0.02]) and clock.median == pytest.approx(0.02)
    assert device.waits > 0


def test_memory_has_honest_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(peak_memory_gb(CPU)) == {"host_peak_rss_gb"} and peak_memory(CPU) > 0.01
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2 << 30)
    found = peak_memory_gb(GPU)
    assert found["device_reserved_gb"] == pytest.approx(3.221, abs=1e-3)
    assert found["device_allocated_gb"] == pytest.approx(2.147, abs=1e-3)
    assert peak_memory(GPU) == 3.0


# --- traces


def event(cat: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 1, "tid": 1, "args": args}


def test_a_trace_of_a_gpu_is_counted() -> None:
    """Two steps, in the form in which Kineto writes the trace of a GPU: made up, as there is none here."""
    events = [
        event("cpu_op", "aten::linear", 0, 100),
        event("cpu_op", "aten::addmm", 10, 60),
        event("cuda_runtime", "cudaLaunchKernelExC", 20, 5, correlation=1),
        event("cuda_driver", "cuLaunchKernelEx", 21, 3, correlation=1),  # inside the runtime's
        event("cuda_driver", "cuLaunchKernel", 200, 3, correlation=2),  # by Triton
        event("cuda_runtime", "cudaGraphLaunch", 210, 4, correlation=3),
        event("cuda_runtime", "cudaLaunchKernel", 220, 4, correlation=4),
        event("cuda_runtime", "cudaMemcpyAsync", 230, 4, correlation=5),
        event("cuda_runtime", "cudaStreamSynchronize", 240, 400, correlation=6),
        event("kernel", "gemm", 30, 500),
        event("kernel", "gemm", 530, 300),
        event("kernel", "layer_norm", 830, 100),
        event("gpu_memcpy", "Memcpy HtoD", 930, 60),
        event("gpu_user_annotation", "ProfilerStep#2", 0, 9999),
        {"ph": "M", "name": "process_name"},
    ]
    activity = Activity.of(events, steps=2)
    assert activity.per_step(GPU) == pytest.approx(
        {
            "operators_per_step": 1.0,
            "operator_ms_per_step": 0.05,  # 40 + 60 microseconds: what is nested counts once
            "host_launches_per_step": 2.0,
            "host_copies_per_step": 0.5,
            "kernels_per_step": 1.5,
            "kernel_ms_per_step": 0.45,
            "copy_ms_per_step": 0.03,
        }
    )
    assert set(activity.per_step(CPU)) == {"operators_per_step", "operator_ms_per_step"}
    assert "gemm" in activity.table().splitlines()[1] and "aten" not in activity.table()


def steps(profiler: StepProfiler, count: int, then: Callable[[], object] = lambda: None) -> None:
    with profiler:
        for _ in range(count):
            torch.ones(8, 8) @ torch.ones(8, 8)
            profiler.step()
        then()


def test_a_few_steps_after_the_first_are_traced(tmp_path: Path) -> None:
    said: list[str] = []
    steps(profiler := StepProfiler(tmp_path, 2, CPU, said.append), 8)
    assert profiler.activity is not None and profiler.activity.steps == 2
    calls = {one.name: one.calls for one in profiler.activity.operators}
    assert calls["aten::matmul"] == 2, "the steps before and after are left out"
    assert len([e for e in read_trace(tmp_path / TRACE) if e["name"] == "aten::matmul"]) == 2
    assert "aten::" in said[0] and [path.name for path in tmp_path.iterdir()] == [TRACE]


def test_a_run_that_ends_early_writes_the_steps_it_has_or_says_that_there_is_none(tmp_path: Path) -> None:
    said: list[str] = []
    steps(profiler := StepProfiler(tmp_path, 5, CPU, said.append), 6)
    assert profiler.activity is not None and profiler.activity.steps == 2
    steps(StepProfiler(tmp_path / "none", 5, CPU, said.append), 3)
    assert said[-1].startswith("No trace") and not (tmp_path / "none").exists()


def test_a_trace_that_cannot_be_written_is_said_and_an_error_of_the_run_stays(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "file").write_text("")
    steps(StepProfiler(tmp_path / "file", 1, CPU, said.append, wait=0), 2)
    assert said[0].startswith("The trace could not be written")
    with pytest.raises(ZeroDivisionError):
        steps(StepProfiler(tmp_path, 3, CPU, said.append, wait=0), 2, lambda: 1 // 0)
    assert not (tmp_path / TRACE).exists()


def test_without_steps_there_is_no_profiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2i2.training.profiling.profile", None)
    steps(profiler := StepProfiler(tmp_path, 0, CPU), 3)
    assert profiler.activity is None and not list(tmp_path.iterdir())


def test_the_hosts_time_is_that_inside_without_collectives() -> None:
    clock = iter(range(100))
    host = engine.HostTime(lambda: float(next(clock)))
    reduce = host.wrap_collective(lambda: SimpleNamespace(wait=lambda: None, other=3))

    def work() -> int:
        handle = reduce()
        handle.wait()
        return handle.other

    assert host.wrap(work)() == 3
    reduce()  # outside
    assert host.inside == 5 and host.collectives == 2 and host.own == 3


# --- rows


def row(**changes: str) -> records.Record:
    made = records.Record(
        **{
            "date": "2026-01-02",
            "card": "NVIDIA Test",
            "torch": "9.9",
            "driver": "1.2",
            "commit": "abc",
            "what": "pretrain, bfloat16",
        },
        **{
            "preset": "tiny",
            "batch": "8",
            "tokens": "20",
            "pairs_per_s": "50",
            "tflops": "0.04",
            "memory_gb": "1.5",
            "command": "x",
        },
    )
    return replace(made, **changes)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Rows of a CPU and of two made-up cards."""
    path = tmp_path / "speed.csv"
    for one in (row(card="CPU: Some, 1 thread(s)", driver=""), row(command='a "b", | c'), row(card="2 x NVIDIA Other", batch="32")):
        records.append(path, one)
    return path


def test_rows_come_back_as_they_were_and_tables_begin_with_the_gpus(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [one.command for one in records.read(table)] == ["x", 'a "b", | c', "x"]
    assert [one.ranks for one in records.read(table)] == [1, 1, 2]
    assert benchmark_command.main(["table", str(table)]) == 0
    text = capsys.readouterr().out
    assert text.index("**2 x NVIDIA Other**") < text.index("**NVIDIA Test**") < text.index("**CPU: Some")
    assert "GB resident" in text[text.index("**CPU") :] and r"\| c" in text


def test_tables_go_into_a_page_between_its_marks(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- speed.csv -->\nold\n<!-- end of speed.csv -->\nafter\n")
    for _ in range(2):
        assert benchmark_command.main(["table", str(table), "--into", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and text.count("NVIDIA Test") == 1
    page.write_text("no marks")
    assert benchmark_command.main(["table", str(table), "--into", str(page)]) == 2
    assert "has no lines" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", None])
def test_what_is_no_such_file_is_refused_before_anything_is_measured(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.csv"
    if text is None:
        path = tmp_path / "missing" / "speed.csv"
    else:
        path.write_text(text)
    assert benchmark_command.main(["pretrain", "--preset", "tiny", "--record", str(path)]) == 2
    assert str(path.name) in capsys.readouterr().err


def test_the_page_on_speed_shows_the_recorded_rows() -> None:
    recorded = records.tables(records.read(ROOT / "docs" / "results" / "speed.csv"))
    assert f"<!-- speed.csv -->\n{recorded}\n<!-- end of speed.csv -->" in (ROOT / "docs" / "speed.md").read_text()


def test_places_of_this_machine_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["/x/tools/benchmark.py", "pretrain", "--record", "/x/y.csv", "--json", "--profile", "/t", "--batch", "4", "a.b=c d"]
    monkeypatch.setattr(measuring.sys, "argv", words)
    found = {"preset": "tiny", "precision": "float32", "tokens": 25, "batch": 4, "pairs_per_s": 12.345, "gflop_per_s_per_rank": 7.0}
    one = records.record_of("pretrain", {**found, "host_peak_rss_gb": 1.0, "ranks": 2})
    assert one.command == "python tools/benchmark.py pretrain --batch 4 'a.b=c d'"
    assert (one.pairs_per_s, one.tflops, one.memory_gb, one.what) == ("12.35", "0.007", "1", "pretrain, float32")
    if not torch.cuda.is_available():
        assert one.card.startswith("2 x CPU: ") and not one.on_gpu


# --- plans


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = plan_command.main(["--preset", "tiny", *words])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


def cells(text: str, gpus: int) -> list[float]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {gpus} |"))
    return [float(cell.strip().rstrip("%")) for cell in line.strip("|").split("|")]


def test_a_measured_row_is_what_a_gpu_sustains(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One GPU makes the steps of the row, as many pairs at once; up to 4,096 are predicted from it."""
    from m2i2.models.flops import pretraining_flops

    flops = sum(pretraining_flops(preset("tiny")[0], 20, 8).values()) * 50
    records.append(table, row(tflops=repr(flops / 1e12), card="NVIDIA Newest"))
    text = plan(capsys, "--measured", str(table), "--card", "newest", "--gpus", "1")
    assert "measured on 2026-01-02 on NVIDIA Newest" in text and "No overlap is assumed" in text
    assert cells(text, 1)[5] == pytest.approx(50, rel=1e-3) and cells(text, 4096)[5] > 50
    hidden = plan(capsys, "--measured", str(table), "--row", "4", "--gpus", "1", "--overlap")
    assert "Overlap is assumed to be complete" in hidden
    assert cells(hidden, 16)[5] > cells(text, 16)[5]
    assert "16 per step" in plan(capsys, "--measured", str(table), "--card", "other", "--gpus", "1"), "32 of two ranks"
    assert "assumed (--tflops), not measured" in plan(capsys, "--gpus", "2")


def test_offloading_moves_the_moments_and_has_no_loss_scale(capsys: pytest.CaptureFixture[str]) -> None:
    plain, offloaded = (plan(capsys, "--gpus", "2", "--batch", "8", *more) for more in ([], ["--offload"]))
    bytes_of = lambda text, kind: float(next(line for line in text.splitlines() if line.startswith(f"  {kind} ")).split()[-1])  # noqa: E731
    assert bytes_of(plain, "optimizer") == bytes_of(offloaded, "moments") > bytes_of(offloaded, "optimizer") == 0
    assert cells(plain, 2)[1] > cells(offloaded, 2)[1] and "weights that are stepped" not in plain
    saved = "copy that a save is written from (first GPU)"
    assert bytes_of(plain, saved) > bytes_of(plain, "parameters") and saved not in plan(
        capsys, "--gpus", "2", "--batch", "8", "training.save_in_background=false"
    )
    assert "| 4 |" in plan(capsys, "--gpus", "2", "--batch", "8", "training.precision=float16", "training.accumulation=2")
    words = ["--preset", "tiny", "--gpus", "2", "--offload", "--batch", "8", "training.precision=float16"]
    assert plan_command.main(words) == 2
    assert "needs a loss scale" in capsys.readouterr().err


def test_the_table_of_what_to_run_is_the_planners() -> None:
    """Memory and pairs/s in docs/pretraining.md, and that each row leaves a fifth of the card's memory free."""
    text = (ROOT / "docs" / "pretraining.md").read_text().partition("## Settings by GPU")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "--preset" in line]
    counts, machine, checked = {"one": 1, "two": 2, "eight": 8}, Machine(100e12, 20e9), 0
    gpus, card = 0, 0
    for who, settings, memory, rate in rows:
        if stated := re.match(r"(one|two|eight) GPUs?\b.*?(\d+) GB", who):
            gpus, card = counts[stated[1]], int(stated[2])
        if not memory:
            continue
        words = settings.strip("`").split()
        changed = [word for word in words if "=" in word]
        config = override(preset(words[words.index("--preset") + 1])[0], changed)
        batch, parts = config.training.batch, config.training.accumulation
        planned = make_plan(config, gpus, machine, rows=batch // gpus // parts, offload="offload" in settings)
        needed = sum(planned.memory.values()) / 1e9
        assert float(memory) == pytest.approx(needed, abs=0.06), settings
        assert not rate or float(rate.replace(",", "")) == pytest.approx(batch / planned.seconds, rel=0.01), settings
        assert needed < 0.8 * card, settings
        checked += 1
    assert checked == 11


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row", "9"], "There is no row 9"),
        (["--what", "finetune"], "No such row"),
        (["--tflops", "3"], "give one of them"),
        (["--card", "zero"], "is not a number above 0"),
    ],
)
def test_a_row_that_serves_no_plan_is_refused(
    words: list[str], message: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records.append(table, row(what="finetune, bfloat16"))
    records.append(table, row(card="Zero", tflops="nan"))
    assert plan_command.main(["--preset", "tiny", "--measured", str(table), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_columns_are_those_of_the_file() -> None:
    assert json.dumps(records.COLUMNS) == (
        '["date", "card", "torch", "driver", "commit", "what", "preset", "batch", "tokens", "pairs_per_s", "tflops", "memory_gb", '
        '"command"]'
    )
