"""What a loader's worker process does before it loads: which signals, threads and memory are its own."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8


def start_worker(_: int) -> None:
    """Workers leave signals to the training process, compute on one thread, and give freed memory back.

    DataLoader's workers end within seconds of their parent, but for one whose parent was killed before it came to look.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)
    for name in ("SIGINT", "SIGTERM", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)
    gc.freeze()  # a collection would write to every object of the training process, and so make a copy of its pages
    _give_back_memory()


def _give_back_memory() -> None:
    """Let glibc return what is freed, but for a few MB: the training process's heap, which this one began with, keeps everything.

    Left alone, glibc also raises its thresholds with every large block that is freed, and has a heap for every thread.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt if sys.platform.startswith("linux") else None
    except (OSError, AttributeError):
        mallopt = None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 1 << 16)
        mallopt(_M_MMAP_THRESHOLD, 4 << 20)
        mallopt(_M_TRIM_THRESHOLD, 8 << 20)
        mallopt(_M_ARENA_MAX, 1)
