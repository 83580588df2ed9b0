"""Is this machine ready? python tools/doctor.py --help"""

from m2i2.cli.doctor import main

if __name__ == "__main__":
    raise SystemExit(main())
