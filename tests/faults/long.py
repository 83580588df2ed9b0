"""The long forms of the tests of faults: many steps without a false alarm, and many faults in one run.

    python -m tests.faults.long clean --steps 10000
    python -m tests.faults.long faults --faults 100

``clean``: a run of two ranks that nothing disturbs; it must raise no alarm. ``faults``: random faults of the recoverable kinds, one
after another, each followed by the same command; the final weights and the samples must be those of the undisturbed run, to the
bit. Both print the goodput.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from m2i2.cli.make_shards import main as make_shards
from m2i2.training.checkpoint import Checkpoints
from m2i2.training.goodput import LEDGER, summarise
from m2i2.training.lines import StepLines
from tests.distributed.test_stored_state import PLACES
from tests.faults.runs import Watched, items, lines, steps_logged, tensors
from tests.faults.test_hangs import two_ranks

FROM_OUTSIDE = ("kill one", "kill all", "stop")
INSIDE = ("lock", "deadlock", "worker", "raise", "nan", "disk", "products", *(f"flip {what}" for what in PLACES))
KINDS = (*FROM_OUTSIDE, *INSIDE)
BOUND = 6.0


def goodput(run: Path) -> str:
    """The goodput of a run, and what ate the rest."""
    found = summarise(StepLines.of(run / LEDGER))
    rest = ", ".join(f"{kind} {share:.1%}" for kind, share in found.eaten())
    return f"goodput {found.share:.1%} of {found.wall:.0f} s in {found.starts} starts ({rest})"


def ended(ranks: list[Watched]) -> list[int]:
    """The exit codes."""
    return [rank.wait(3000) for rank in ranks]


def clean(folder: Path, shards: Path, steps: int) -> None:
    """A run that nothing disturbs."""
    ranks = two_ranks("none", shards, folder, 60.0, steps)
    codes, run = ended(ranks), folder / "run"
    alarms = [row["kind"] for name in ("hangs.jsonl", "suspicious.jsonl") for row in lines(run / name)]
    alarms += ["replay" for _ in lines(run / "replays.jsonl")]
    print(f"{steps_logged(run)} steps, exit codes {codes}, alarms: {len(alarms)} {Counter(alarms) or ''}; {goodput(run)}")
    assert codes == [0, 0] and not alarms and steps_logged(run) == steps, "\n".join(rank.output[-3000:] for rank in ranks)


def disturbed(folder: Path, shards: Path, kind: str, steps: int, chance: random.Random) -> None:
    """One start with one fault."""
    run = folder / "run"
    done = max(map(Checkpoints.step, Checkpoints(run / "checkpoints").all()), default=0)
    at = done + chance.randint(4, 8)
    before = len(lines(run / LEDGER))
    ranks = two_ranks(kind if kind in INSIDE else "none", shards, folder, BOUND, steps, at)
    if kind in FROM_OUTSIDE:  # once this start has done steps
        assert ranks[0].wait_until(lambda: any(row["step"] >= at - 3 for row in lines(run / LEDGER)[before:])), ranks[0].output
        time.sleep(chance.uniform(0, 0.3))
        number = signal.SIGSTOP if kind == "stop" else signal.SIGKILL
        for rank in ranks if kind == "kill all" else ranks[:1] if chance.random() < 0.5 else ranks[1:]:
            rank.process.send_signal(number)
    elif kind == "nan":
        ranks[0].wait_until(lambda: bool(lines(run / "suspicious.jsonl")) and steps_logged(run) >= at + 1)
        for rank in ranks:
            rank.process.send_signal(signal.SIGTERM)
    codes = ended(ranks)
    assert 0 not in codes, (kind, codes, ranks[0].output[-2000:])


def faults(folder: Path, shards: Path, count: int, seed: int) -> None:
    """Many faults in one run."""
    chance, steps = random.Random(seed), 10 * count + 40
    (folder / "plain").mkdir()
    ended(two_ranks("none", shards, folder / "plain", 600.0, steps))
    plan = [KINDS[number % len(KINDS)] for number in range(count)]
    chance.shuffle(plan)
    (folder / "faulty").mkdir()
    os.mkfifo(folder / "faulty" / "pipe")
    for number, kind in enumerate(plan):
        began = time.monotonic()
        disturbed(folder / "faulty", shards, kind, steps, chance)
        print(f"{number + 1}/{count} {kind}: {time.monotonic() - began:.1f} s", flush=True)
    codes = ended(two_ranks("none", shards, folder / "faulty", 600.0, steps))
    plain, run = folder / "plain" / "run", folder / "faulty" / "run"
    assert codes == [0, 0]
    assert tensors(run, steps) == tensors(plain, steps), "the weights are those of the undisturbed run"
    assert items(run) == items(plain), "and so are the samples"
    print(f"{count} faults {dict(Counter(plan))}: weights and samples bit-identical over {steps} steps; {goodput(run)}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["clean", "faults"])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2023)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        words = ["--count", "80", "--side", "32", "--samples-per-shard", "20", "--workers", "1"]
        assert make_shards(["captions", "phantoms", "--output", str(folder / "shards"), *words]) == 0
        if arguments.what == "clean":
            clean(folder, folder / "shards", arguments.steps)
        else:
            faults(folder, folder / "shards", arguments.faults, arguments.seed)


if __name__ == "__main__":
    main()
