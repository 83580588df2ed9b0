"""Loss curves of one or more runs: python tools/plot_losses.py runs/small --output losses.png"""

try:
    from m2i2.cli.plot_losses import main
except ModuleNotFoundError as e:
    raise SystemExit(f"error: {e} in this Python. Run `make setup` once, then `source .venv/bin/activate`.") from None

if __name__ == "__main__":
    raise SystemExit(main())
