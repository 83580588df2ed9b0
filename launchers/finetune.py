"""See --help, and m2i2/commands/finetune.py."""

from m2i2.commands.finetune import main

if __name__ == "__main__":
    raise SystemExit(main())
