"""MiniLM-L6 as a text start: python tools/fetch_minilm.py --help"""

from m2i2.cli.fetch_minilm import main

if __name__ == "__main__":
    raise SystemExit(main())
