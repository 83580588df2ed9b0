"""Memory that stays with the process: on a CPU, fresh pages for every large tensor cost more than the tensor's arithmetic."""

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next allocation instead of giving them back; False where it cannot.

    Called after what lives as long as the process was allocated: that then lies outside the heap and leaves no holes in it.
    Ranking a candidate list became 2.5 times as fast by it on two cores (700 to 283 microseconds a node).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):
        return False
