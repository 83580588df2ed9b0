"""Loss curves of one or more runs: python tools/plot_losses.py runs/small --output losses.png"""

from m2i2.cli.plot_losses import main

if __name__ == "__main__":
    raise SystemExit(main())
