"""Runs and evaluations as one HTML file: python tools/report.py --help"""

from m2i2.cli.report import main

if __name__ == "__main__":
    raise SystemExit(main())
