"""See --help, and m2i2/cli/slurm.py."""

from m2i2.cli.slurm import main

if __name__ == "__main__":
    raise SystemExit(main())
