"""See --help, and m2i2/cli/finetune.py."""

from m2i2.cli.finetune import main

if __name__ == "__main__":
    raise SystemExit(main())
