"""Is one result better than another? python tools/compare.py runs/a/evaluation-test-rank runs/b/evaluation-test-rank"""

try:
    from m2i2.cli.compare import main
except ModuleNotFoundError as e:
    raise SystemExit(f"error: {e} in this Python. Run `make setup` once, then `source .venv/bin/activate`.") from None

if __name__ == "__main__":
    raise SystemExit(main())
