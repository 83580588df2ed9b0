"""Is one result better than another? python tools/compare.py runs/a/evaluation-test-rank runs/b/evaluation-test-rank"""

from m2i2.cli.compare import main

if __name__ == "__main__":
    raise SystemExit(main())
