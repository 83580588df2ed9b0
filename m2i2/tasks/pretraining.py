"""Pretraining as a task: the student in the engine, the teacher and the queue beside it."""

import torch
from torch import Tensor, nn

from m2i2.config import PretrainingConfig
from m2i2.data.images.transforms import normalise
from m2i2.data.loading.batch import CaptionBatch
from m2i2.distributed import all_gather, max_over_ranks
from m2i2.models.flops import pretraining_flops
from m2i2.models.pretraining import PretrainingModel, TeacherTargets
from m2i2.tasks.queue import FeatureQueue
from m2i2.tasks.teacher import Teacher
from m2i2.training.optimizer import distillation_ramp
from m2i2.training.processes import Process
from m2i2.training.trainer import Task


class PretrainingTask(Task):
    """The four objectives, the momentum teacher and the queue of one run."""

    student: PretrainingModel

    def __init__(
        self, student: PretrainingModel, config: PretrainingConfig, process: Process, dtype: torch.dtype, pad_id: int
    ) -> None:
        self.student = student
        self.teacher = Teacher(student)
        self.queue = FeatureQueue(config.objectives.queue, config.objectives.projection, config.training.seed)
        self.beside = {"teacher": self.teacher, "queue": self.queue}
        self.config, self.process, self.dtype, self.pad_id = config, process, dtype, pad_id
        self.distillation = 0.0
        self._to_push: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """The share of soft targets at this step."""
        self.distillation = distillation_ramp(self.config.objectives.distillation, step, steps_per_epoch)

    def flops(self, batch: CaptionBatch) -> float:
        """As `pretraining_flops` counts them at the length of the padded captions; 0 where an objective is left out."""
        weights = self.config.objectives
        if not (weights.mim and weights.mlm and weights.itm and weights.itc):
            return 0.0
        of_pair = pretraining_flops(self.config, batch.input_ids.shape[1], self.config.training.batch)
        return len(batch) * sum(of_pair.values())

    def losses(self, engine: nn.Module, batch: CaptionBatch, step: int, micro: int) -> dict[str, Tensor]:
        """The four losses of a micro-batch, and their weighted sum as ``loss``."""
        batch = self.prepared(batch)
        with torch.autocast(self.process.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            targets: TeacherTargets = self.teacher.targets(batch, self.config.objectives.image_mask_ratio)
        key = (self.config.training.seed * 1_000_003 + step) * 4099 + micro
        noise = negative_noise(key, len(batch), self.process, batch.item.device)
        losses = engine(batch, targets, self.queue, noise, self.distillation)
        self._to_push.append(
            (
                all_gather(targets.image_features),
                all_gather(targets.text_features),
                all_gather(batch.image_id),
                all_gather(batch.caption_id),
            )
        )
        return self.weighted(losses)

    def prepared(self, batch: CaptionBatch) -> CaptionBatch:
        """The batch with normalised pixels and captions as long as those of every other rank. Collective."""
        batch.image = normalise(batch.image)
        if self.process.ranks > 1:
            longest = int(max_over_ranks(torch.tensor([batch.input_ids.shape[1]], device=batch.item.device)))
            batch = batch.padded(longest, self.pad_id)
        return batch

    def weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses that have a weight, and their weighted sum as ``loss``."""
        weights = {name: getattr(self.config.objectives, name) for name in ("mim", "mlm", "itm", "itc")}
        named = {name: losses[name] for name, weight in weights.items() if weight}
        total = sum((weights[name] * loss for name, loss in named.items()), losses["unused"])
        return {"loss": total, **named}

    def end_step(self) -> None:
        """Push the step's features onto the queue, in the order of the global batch; the teacher follows the student.

        The official code lets the teacher follow at the start of the next step, which is the same.
        """
        for features in self._to_push:
            self.queue.push(*features)
        self._to_push.clear()
        self.teacher.update(self.student, self.config.objectives.momentum)

    def skip_step(self) -> None:
        """Forget the step's features."""
        self._to_push.clear()

    def readings(self) -> dict[str, float]:
        """The contrastive temperature and the share of soft targets."""
        return {"temperature": float(self.student.temp.detach()), "distillation": self.distillation}


def negative_noise(key: int, rows: int, process: Process, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gumbel noise [b, b * ranks] of this rank's ``rows``, twice (images for texts, texts for images).

    It is drawn for the global batch from ``key``, so that it is the same for any number of ranks.
    """
    generator = torch.Generator().manual_seed(key)
    everyone = rows * process.ranks
    uniform = torch.rand((2, everyone, everyone), generator=generator).clamp_(1e-20, 1 - 1e-7)
    mine = uniform[:, process.rank * rows : (process.rank + 1) * rows]
    gumbel = (-(-mine.log()).log()).to(device, non_blocking=True)
    return gumbel[0], gumbel[1]
