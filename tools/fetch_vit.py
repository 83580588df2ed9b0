"""A ViT-S/14 as an image start: python tools/fetch_vit.py --help"""

from m2i2.cli.fetch_vit import main

if __name__ == "__main__":
    raise SystemExit(main())
