"""Plan a run on many GPUs: python tools/plan.py --help"""

from m2i2.cli.plan import main

if __name__ == "__main__":
    raise SystemExit(main())
