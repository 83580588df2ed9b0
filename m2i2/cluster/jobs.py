"""What runs on the nodes: one process per rank, started by srun, that calls a launcher's own code."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from submitit.core.utils import DelayedSubmission
from submitit.helpers import TorchDistributedEnvironment
from submitit.slurm.slurm import SlurmJobEnvironment

from m2i2.cluster.control import shown_state
from m2i2.cluster.stages import command_line
from m2i2.errors import M2I2Error
from m2i2.training.signals import listen_early

STAGES = ("pretrain", "finetune", "evaluate")


class LostRank(RuntimeError):
    """Another rank is gone; the error of its own is the one to look at."""


@dataclass(frozen=True)
class RankJob:
    """A launcher's command line as a submitit job; it is called once on every rank."""

    stage: str
    words: tuple[str, ...]
    folder: str
    """Where the command was submitted: its relative paths start there."""
    gpus: int
    """GPUs per node that the job asked for."""
    preflight: bool = False
    """Whether a training run measures its nodes first."""

    def __call__(self) -> int:
        """Run the launcher on this rank. A stopped run goes back to the queue: SystemExit, without a result."""
        sys.excepthook = _end_at_once
        requeue: Any = signal.getsignal(signal.SIGUSR2)
        if self.stage == "evaluate":
            # nothing to save: SLURM itself requeues what it preempts
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        else:
            listen_early()
        os.chdir(self.folder)
        environment = SlurmJobEnvironment()
        join_ranks(environment)
        self._check_gpus(environment)
        try:
            code = command(self.stage)([*self.words, *(["--preflight"] if self.preflight else [])])
        except Exception as error:
            from m2i2.exits import lost_another_rank

            if not isinstance(error, M2I2Error) and environment.num_tasks > 1 and lost_another_rank(error):
                raise LostRank("lost contact with another rank") from error
            raise
        if code:
            _go_on_later(environment, requeue, code)
        return code

    def checkpoint(self) -> DelayedSubmission:
        """What runs after a requeue: the same command, which resumes from its newest checkpoint."""
        return DelayedSubmission(self)

    def _check_gpus(self, environment: SlurmJobEnvironment) -> None:
        if not self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a node's GPUs that the job did not ask for
            return
        import torch

        if not torch.cuda.is_available():
            raise M2I2Error(
                f"The job got {self.gpus} GPU(s) on {environment.hostname} (CUDA_VISIBLE_DEVICES="
                f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')!r}), but PyTorch {torch.__version__} can use none. Install a CUDA "
                f"build of PyTorch that fits the node's driver, or ask for CPUs: --gpus 0."
            )


def command(stage: str) -> Callable[[Sequence[str]], int]:
    """The launcher's command without its guard: its exceptions are for submitit, which hands them to the submitter."""
    run: Callable[[Sequence[str]], int] = command_line(stage).run
    return run


def join_ranks(environment: SlurmJobEnvironment) -> None:
    """Describe the process group to torch and DeepSpeed: ranks as SLURM counts them, meeting on the first node."""
    # by the job's number, so that neighbours differ, and below the ports that kernels hand out by themselves
    os.environ.setdefault("MASTER_PORT", str(20000 + int(environment.raw_job_id) % 10000))
    exported = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    os.environ["LOCAL_SIZE"] = str(exported.local_world_size)


def _go_on_later(environment: SlurmJobEnvironment, requeue: Callable[[int, None], None], code: int) -> None:
    """After the ranks have saved and parted: back to the queue, unless SLURM is ending the job anyway.

    Preemption and the coming time limit leave the job RUNNING for a while; scancel, a node's failure and `scontrol requeue`
    do not. Only rank 0 acts (submitit's handler writes the job's pickle and requeues); the others end without an error,
    because one that failed would take rank 0 with it.
    """
    if environment.global_rank:
        raise SystemExit(0)
    if shown_state(environment.job_id) == "RUNNING":
        requeue(signal.SIGUSR2, None)
    raise SystemExit(code)


def _end_at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In the place of the interpreter's last words: what the launchers print, and no waiting for lost ranks."""
    from m2i2.exits import report

    code = report(error.__cause__ if isinstance(error, LostRank) and error.__cause__ else error)
    sys.stdout.flush()
    time.sleep(1)  # srun ends the step at once, and with it what is still on its way to the logs
    os._exit(code)
