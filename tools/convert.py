"""Official .pth, our checkpoints, Hugging Face folders, each into each: python tools/convert.py --help"""

from m2i2.cli.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
