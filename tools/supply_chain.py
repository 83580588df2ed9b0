"""What is installed, and is it in order? python tools/supply_chain.py --help"""

from m2i2.cli.supply_chain import main

if __name__ == "__main__":
    raise SystemExit(main())
