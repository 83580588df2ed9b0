"""A vocabulary from the texts of shards: python tools/make_tokenizer.py --help"""

try:
    from m2i2.cli.make_tokenizer import main
except ModuleNotFoundError as e:
    raise SystemExit(f"error: {e} in this Python. Run `make setup` once, then `source .venv/bin/activate`.") from None

if __name__ == "__main__":
    raise SystemExit(main())
