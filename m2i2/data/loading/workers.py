"""The life of a loader's worker process: which signals, threads and memory are its own, and when it ends."""

import atexit
import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import weakref
from collections.abc import Iterator
from typing import Any

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


_WORKING: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""Iterators that may have workers."""


@contextlib.contextmanager
def ending_with_it(batches: Any) -> Iterator[None]:
    """End the workers of a DataLoader's iterator with the block, or with the program."""
    _WORKING.add(batches)
    try:
        yield
    finally:
        _end_workers(batches)


def _end_workers(batches: Any) -> None:
    """End the workers of a DataLoader's iterator. They ignore SIGTERM, with which multiprocessing would end them at exit."""
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()


@atexit.register
def _end_all_workers() -> None:
    for batches in list(_WORKING):
        _end_workers(batches)
