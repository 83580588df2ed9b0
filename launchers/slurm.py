"""See --help, and m2i2/commands/slurm.py."""

from m2i2.commands.slurm import main

if __name__ == "__main__":
    raise SystemExit(main())
