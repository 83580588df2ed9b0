"""Official .pth, our checkpoints, Hugging Face folders, each into each: python tools/convert.py --help"""

try:
    from m2i2.cli.convert import main
except ModuleNotFoundError as e:
    raise SystemExit(f"error: {e} in this Python. Run `make setup` once, then `source .venv/bin/activate`.") from None

if __name__ == "__main__":
    raise SystemExit(main())
