"""Which images lie in two sets at once: python tools/audit_leakage.py --help"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # --workers shares out the cores; read when NumPy is imported

try:
    from m2i2.cli.audit_leakage import main
except ModuleNotFoundError as e:
    raise SystemExit(f"error: {e} in this Python. Run `make setup` once, then `source .venv/bin/activate`.") from None

if __name__ == "__main__":
    raise SystemExit(main())
