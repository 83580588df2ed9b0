"""Real processes that talk over gloo, for tests.

They are forked from a server that has torch and DeepSpeed imported already, once a test session: see tests/preloaded.py.
"""

import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.preloaded import IMPORTS, LONG


def _run(rank: int, ranks: int, port: int, output: str, work: Callable[..., Any], arguments: tuple[Any, ...], results: Any) -> None:
    torch.set_num_threads(1)
    with open(output, "ab", buffering=0) as out:  # the server's own output is that of another test
        for file in (1, 2):
            os.dup2(out.fileno(), file)
    place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_SIZE": ranks, "MASTER_PORT": port, "M2I2_THREADS": 1}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    try:
        results.put((rank, work(rank, ranks, *arguments), None))
    except Exception:
        results.put((rank, None, traceback.format_exc()))
        return
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(ranks: int, work: Callable[..., Any], *arguments: Any, seconds: float = 900) -> list[Any]:
    """What ``work(rank, ranks, *arguments)`` returns on each of ``ranks`` processes, in rank order."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn" if LONG or torch.cuda.is_available() else "forkserver")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    context.set_forkserver_preload(list(IMPORTS))
    results: Any = context.Queue()
    output = tempfile.NamedTemporaryFile(prefix="m2i2-ranks-")  # noqa: SIM115
    common = (ranks, port, output.name, work, arguments, results)
    started = [context.Process(target=_run, args=(rank, *common), daemon=True) for rank in range(ranks)]
    for process in started:
        process.start()
    found: dict[int, Any] = {}
    try:
        for _ in range(ranks):
            rank, value, error = results.get(timeout=seconds)
            assert error is None, f"rank {rank}:\n{error}"
            found[rank] = value
        for process in started:
            process.join(seconds)
            assert process.exitcode == 0
    finally:
        for process in started:
            process.kill()
        with output:
            os.write(1, output.read())
    return [found[rank] for rank in range(ranks)]
