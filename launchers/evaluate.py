"""See --help, and m2i2/commands/evaluate.py."""

from m2i2.commands.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
