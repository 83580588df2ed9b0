"""A ViT-S/14 as an image start: python tools/fetch_vit.py --help"""

try:
    from m2i2.cli.fetch_vit import main
except ModuleNotFoundError as e:
    raise SystemExit(f"error: {e} in this Python. Run `make setup` once, then `source .venv/bin/activate`.") from None

if __name__ == "__main__":
    raise SystemExit(main())
