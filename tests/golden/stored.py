"""The golden record as it is stored."""

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("golden.json")


@cache
def stored() -> dict[str, Any]:
    """Every case's record."""
    return json.loads(FILE.read_text())
