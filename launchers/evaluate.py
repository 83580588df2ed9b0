"""See --help, and m2i2/cli/evaluate.py."""

from m2i2.cli.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
