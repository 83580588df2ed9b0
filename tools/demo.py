"""The main job end to end on synthetic images: python tools/demo.py --help"""

try:
    from m2i2.cli.demo import main
except ModuleNotFoundError as e:
    raise SystemExit(f"error: {e} in this Python. Run `make setup` once, then `source .venv/bin/activate`.") from None

if __name__ == "__main__":
    raise SystemExit(main())
