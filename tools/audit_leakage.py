"""Which images lie in two sets at once: python tools/audit_leakage.py --help"""

from m2i2.cli.audit_leakage import main

if __name__ == "__main__":
    raise SystemExit(main())
