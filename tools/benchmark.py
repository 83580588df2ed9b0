"""Measure every stage: python tools/benchmark.py --help"""

from m2i2.cli.benchmark import main

if __name__ == "__main__":
    raise SystemExit(main())
