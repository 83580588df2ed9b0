"""See --help, and m2i2/commands/pretrain.py."""

from m2i2.commands.pretrain import main

if __name__ == "__main__":
    raise SystemExit(main())
