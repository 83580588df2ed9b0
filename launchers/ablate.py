"""See --help, and m2i2/cli/ablate.py."""

from m2i2.cli.ablate import main

if __name__ == "__main__":
    raise SystemExit(main())
