"""See --help, and m2i2/cli/pretrain.py."""

from m2i2.cli.pretrain import main

if __name__ == "__main__":
    raise SystemExit(main())
