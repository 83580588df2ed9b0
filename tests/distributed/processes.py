"""Real processes that talk over gloo, for tests."""

import os
import socket
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _run(rank: int, ranks: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...], results: Any) -> None:
    torch.set_num_threads(1)
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


def on_ranks(ranks: int, work: Callable[..., Any], *arguments: Any, seconds: float = 120, preload: Sequence[str] = ()) -> list[Any]:
    """What ``work(rank, ranks, *arguments)`` returns on each of ``ranks`` processes, in rank order.

    With modules to ``preload`` the processes are forked off a server that has imported them, once for all calls; else each
    starts afresh.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("forkserver" if preload else "spawn")
    if preload:
        context.set_forkserver_preload(list(preload))
    results: Any = context.Queue()
    started = [
        context.Process(target=_run, args=(rank, ranks, port, work, arguments, results), daemon=True) for rank in range(ranks)
    ]
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
    return [found[rank] for rank in range(ranks)]
