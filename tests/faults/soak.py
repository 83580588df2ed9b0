"""A long run under watch: memory, processes and shared memory over its steps.

    python -m tests.faults.soak --steps 2000 --output docs/soak.png

pretrains the preset `tiny` on two ranks with prefetching loader workers, samples the whole process tree while it runs, prints
a table and draws it. ``tests/faults/test_soak.py`` runs a short form of it.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import psutil

from m2i2.cli.make_shards import main as make_shards
from tests.faults.runs import Watched, is_sentinel, shared_memory, steps_logged, torchrun

MEGABYTE = 1 << 20
TINY = ["--preset", "tiny", "--output", "run", "training.batch=8", "training.log_every=5"]
"""The preset, in batches of 8 so that 2,000 steps take minutes."""


@dataclass(frozen=True)
class Sample:
    """What the run held at a moment; memory in MB."""

    step: int
    ranks: float
    """Resident memory of the ranks."""
    workers: float
    """Proportional resident memory of their loader processes: pages shared with the ranks count once."""
    processes: int
    files: int
    """Open files of the ranks."""
    shared: int
    """The run's files in /dev/shm that have a name."""


def sample(run: Watched) -> Sample | None:
    """A sample of the run now; None where a process has just come or gone."""
    step = steps_logged(run.run)
    try:
        ranks = [rank for rank in (run.rank(0), run.rank(1)) if rank]
        workers = [worker for rank in ranks for worker in rank.children() if not is_sentinel(worker)]
        return Sample(
            step,
            sum(rank.memory_info().rss for rank in ranks) / MEGABYTE,
            sum(worker.memory_full_info().pss for worker in workers) / MEGABYTE,
            len(run.tree()),
            sum(rank.num_fds() for rank in ranks),
            len(shared_memory(run.seen)),
        )
    except psutil.Error:
        return None


def soak(steps: int, folder: Path, every: int, settings: Sequence[str]) -> tuple[list[Sample], Watched]:
    """Train ``steps`` steps, two loader processes per rank, and sample about every so many; the run must succeed."""
    words = ["--output", str(folder / "captions"), "--count", "640", "--side", "64", "--workers", "1"]
    assert make_shards(["captions", "phantoms", *words]) == 0
    more = [f"training.max_steps={steps}", "training.epochs=1000", "training.save_every=100", "data.workers=2"]
    run = Watched([*torchrun(2), "--shards", folder / "captions", *settings, *more], folder)
    samples: list[Sample] = []
    while run.process.poll() is None:
        time.sleep(0.2)
        if steps_logged(run.run) >= (samples[-1].step + every if samples else every) and (now := sample(run)):
            samples.append(now)
    assert run.wait() == 0, run.output[-3000:]
    return samples, run


def table(samples: list[Sample], rows: int = 10) -> str:
    """About ``rows`` of the samples as a Markdown table."""
    heads = (
        "| step | ranks, MB | workers, MB | processes | open files of the ranks | files in /dev/shm |\n|---|---|---|---|---|---|\n"
    )
    chosen = [samples[round(i * (len(samples) - 1) / (rows - 1))] for i in range(rows)]
    return heads + "".join("| " + " | ".join(f"{value:.0f}" for value in astuple(row)) + " |\n" for row in chosen)


def draw(samples: list[Sample], output: Path) -> None:
    """The memory of ranks and workers over the steps, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3), constrained_layout=True)
    steps = [row.step for row in samples]
    axes.plot(steps, [row.ranks for row in samples], label="2 ranks, resident")
    axes.plot(steps, [row.workers for row in samples], label="4 loader processes, proportional")
    axes.set(xlabel="optimizer step", ylabel="MB", ylim=(0, None))
    axes.legend()
    figure.savefig(output, dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps (%(default)s)")
    parser.add_argument("--output", type=Path, help="where the picture goes (needs matplotlib)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples, _ = soak(arguments.steps, Path(folder), max(1, arguments.steps // 100), TINY)
    print(table(samples))
    if arguments.output:
        draw(samples, arguments.output)


if __name__ == "__main__":
    main()
