"""One process among many: its device, its threads, its place in the process group, and how it prints."""

import logging
import os
import socket
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from m2i2.errors import M2I2Error
from m2i2.terminal import say
from m2i2.training.deepspeed.private import prepare_import

TIMEOUT = timedelta(minutes=float(os.environ.get("M2I2_TIMEOUT_MINUTES", "15")))
"""How long a rank waits for the others before it takes them for lost."""


@dataclass(frozen=True)
class Process:
    """This process's place."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that writes and prints."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print once, from rank 0."""
        if self.first:
            say(text, flush=True)


def join() -> Process:
    """Join the process group that the launcher (deepspeed, torchrun, SLURM) described, or be alone without one.

    NCCL with one GPU per rank where CUDA is available, else gloo on the CPU with the node's cores shared out among its ranks.
    With ``M2I2_SHARE_GPU=1`` in the environment, ranks share GPUs and talk through gloo: for tests and measurements on one GPU.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    _quieten()
    alone = "RANK" not in os.environ
    if alone:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    share_gpu = os.environ.get("M2I2_SHARE_GPU") == "1"
    if torch.cuda.is_available():
        if share_gpu:
            local_rank %= torch.cuda.device_count()
            os.environ["LOCAL_RANK"] = str(local_rank)  # DeepSpeed reads it too
        if local_rank >= torch.cuda.device_count():
            raise M2I2Error(
                f"Local rank {local_rank} has no GPU: this node shows {torch.cuda.device_count()}; start at most that many ranks."
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
        local_size = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, int(os.environ.get("M2I2_THREADS") or cores // local_size)))
        prepare_import()
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" and not share_gpu else "gloo"
        try:
            deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=TIMEOUT)
        except dist.DistNetworkError as e:
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise M2I2Error(
                f"The processes could not meet at {address} ({str(e).splitlines()[0]}). If another run uses that port, name "
                f"another: deepspeed --master_port 29501 ..., under SLURM --setup 'export MASTER_PORT=29501'."
            ) from e
    return Process(dist.get_rank(), dist.get_world_size(), device)


def _quieten() -> None:
    """Only errors of DeepSpeed, and no deprecations inside libraries: a run's output belongs to the run."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*barrier.*device.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def leave() -> None:
    """Leave the process group together; gloo aborts a process whose peers are gone while it still talks to them."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
