"""Coverage-guided fuzzing with atheris: ``python -m tests.fuzz.coverage_guided --runs 10000`` tries as many inputs a reader.

Needs the extra ``fuzz`` (Linux). Mutations that reach new lines of our code, of tarfile, of pickletools, of
Pillow's or of PyTorch's readers are kept and mutated further. A finding is written to the folder of --findings.
"""

import argparse
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

INSTRUMENTED = ["m2i2", "tarfile", "pickletools", "PIL"]


def _fuzz_one(name: str, runs: int, corpus: Path, counts: Path, findings: Path) -> None:
    """Fuzz the reader ``name`` in this process, which libFuzzer ends; inputs tried and refused are kept in ``counts``."""
    import atheris
    import torch  # before the hook, which would slow its import down a hundredfold

    atheris.instrument_func(torch._weights_only_unpickler.Unpickler.load)
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        from tests.fuzz.harness import refuses
        from tests.fuzz.readers import READERS

    opened = READERS[name].open(Path(tempfile.mkdtemp(dir=corpus.parent)))
    for number, seed in enumerate(opened.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    tried = refused = 0

    with counts.open("wb", buffering=0) as f:

        def attempt(data: bytes) -> None:
            nonlocal tried, refused
            tried += 1
            refused += refuses(opened.read, data)
            f.seek(0)
            f.write(struct.pack("<QQ", tried, refused))

        words = [f"-runs={runs}", "-max_len=16384", "-timeout=60", "-rss_limit_mb=6144", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *words, f"-artifact_prefix={findings}/", str(corpus)], attempt)
        atheris.Fuzz()


def main() -> int:
    """Every reader in a process of its own; prints the inputs tried; 1 where one ended in anything but our error."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.coverage_guided", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, metavar="N", help="inputs a reader (%(default)s)")
    parser.add_argument("--reader", action="append", metavar="NAME", help="only this one (may be repeated)")
    parser.add_argument("--findings", type=Path, default=Path("findings"), metavar="DIR", help="(%(default)s)")
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--counts", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.corpus:
        _fuzz_one(arguments.reader[0], arguments.runs, arguments.corpus, arguments.counts, arguments.findings)

    from tests.fuzz.harness import IN_MEMORY
    from tests.fuzz.readers import READERS

    arguments.findings.mkdir(parents=True, exist_ok=True)
    totals, failed = [0, 0], []
    print(f"{'reader':<28}{'tried':>10}{'malformed':>11}{'seconds':>9}")
    for name in arguments.reader or READERS:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="m2i2-fuzz-", dir=IN_MEMORY) as folder:
            corpus, counts = Path(folder) / "corpus", Path(folder) / "counts"
            corpus.mkdir()
            words = ["--reader", name, "--runs", str(arguments.runs), "--corpus", str(corpus), "--counts", str(counts)]
            command = [sys.executable, "-m", "tests.fuzz.coverage_guided", *words, "--findings", str(arguments.findings)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            tried, refused = struct.unpack("<QQ", counts.read_bytes()) if counts.exists() else (0, 0)
        totals = [totals[0] + tried, totals[1] + refused]
        print(f"{name:<28}{tried:>10}{refused:>11}{time.monotonic() - begun:>9.0f}", flush=True)
        if done.returncode or tried < arguments.runs:
            failed.append(name)
            print((done.stdout + done.stderr)[-4000:])
    print(f"{'all':<28}{totals[0]:>10}{totals[1]:>11}")
    print(f"findings in {arguments.findings}: {', '.join(failed)}" if failed else "no findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
