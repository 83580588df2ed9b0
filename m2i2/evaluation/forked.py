"""One function over many items, in several processes that share what the parent process holds."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from m2i2.errors import M2I2Error

T = TypeVar("T")
R = TypeVar("R")

_function: Callable[[Any], Any]
"""In a worker process: what it runs. Inherited by the fork, so that nothing of size is copied."""


def each(function: Callable[[T], R], items: Sequence[T], workers: int, portion: int = 1) -> Iterator[R]:
    """``function`` of each item, in order; ``portion`` items at a time go to a process. Results are pickled, nothing else is."""
    if workers == 1 or len(items) <= portion:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=_start, initargs=(function,)) as pool:
        try:
            yield from pool.map(_run, items, chunksize=portion)
        except BrokenProcessPool as e:
            raise M2I2Error("A worker process was killed (out of memory?); start again with fewer --workers.") from e
        finally:
            pool.shutdown(cancel_futures=True)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function


def _run(item: Any) -> Any:
    return _function(item)
