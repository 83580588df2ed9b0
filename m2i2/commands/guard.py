"""How every command ends: a user's error in one paragraph and exit code 2, anything else with its traceback and 1."""

import os
import sys
import traceback
from collections.abc import Callable

from m2i2.errors import M2I2Error

EXIT_USER_ERROR = 2
EXIT_FAULT = 1


def guarded(command: Callable[[], int]) -> int:
    """Run ``command`` and return its exit code.

    A rank among several that fails ends at once, without waiting for the others in any collective, so that its launcher
    takes the whole run down.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    where = f" (rank {os.environ.get('RANK', '0')})" if ranks > 1 else ""
    try:
        return command()
    except M2I2Error as error:
        print(f"error{where}: {error}", file=sys.stderr, flush=True)
        code = EXIT_USER_ERROR
    except Exception:
        print(f"fault{where}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        code = EXIT_FAULT
    if ranks > 1:
        sys.stdout.flush()
        os._exit(code)
    return code
