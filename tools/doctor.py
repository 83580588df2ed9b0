"""Is this machine ready? python tools/doctor.py --help"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # it examines a checkout that is not installed, too

try:
    from m2i2.cli.doctor import main
except ModuleNotFoundError as e:
    raise SystemExit(f"error: {e} in this Python. Run `make setup` once, then `source .venv/bin/activate`.") from None

if __name__ == "__main__":
    raise SystemExit(main())
