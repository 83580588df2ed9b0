"""How every command ends: a user's error in one paragraph and exit code 2, anything else with its traceback."""

import os
import sys
from collections.abc import Callable

from m2i2.errors import M2I2Error

EXIT_USER_ERROR = 2


def guarded(command: Callable[[], int]) -> int:
    """Run ``command``; an M2I2Error becomes a message on stderr, with the rank's number where there are several."""
    try:
        return command()
    except M2I2Error as error:
        rank = os.environ.get("RANK", "0") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        print(f"error{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
