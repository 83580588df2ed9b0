"""What is installed, and is it in order? python tools/supply_chain.py --help"""

try:
    from m2i2.cli.supply_chain import main
except ModuleNotFoundError as e:
    raise SystemExit(f"error: {e} in this Python. Run `make setup` once, then `source .venv/bin/activate`.") from None

if __name__ == "__main__":
    raise SystemExit(main())
