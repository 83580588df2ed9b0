"""See --help, and m2i2/commands/ablate.py."""

from m2i2.commands.ablate import main

if __name__ == "__main__":
    raise SystemExit(main())
