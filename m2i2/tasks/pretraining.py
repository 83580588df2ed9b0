"""Pretraining as a task: the student, the teacher and the queue beside it, and the weighted objectives."""

from dataclasses import replace

import torch

from m2i2.config import PretrainingConfig
from m2i2.data.images.transforms import normalise
from m2i2.data.loading.batch import CaptionBatch
from m2i2.models.flops import pretraining_flops
from m2i2.models.pretraining import PretrainingModel
from m2i2.objectives.registry import active
from m2i2.precision import autocast
from m2i2.tasks.negatives import Everyone, Negatives
from m2i2.tasks.queue import FeatureQueue
from m2i2.tasks.states import PretrainingStates
from m2i2.tasks.task import Key, Output, Task, Untouched, distillation_ramp
from m2i2.tasks.teacher import Teacher


class PretrainingTask(Task):
    """The objectives, the momentum teacher and the queue of one run."""

    student: PretrainingModel

    def __init__(self, student: PretrainingModel, config: PretrainingConfig, dtype: torch.dtype) -> None:
        """``dtype``: of matrix products."""
        self.student, self.config, self.dtype = student, config, dtype
        self.objectives = active(config.objectives)
        self.teacher = Teacher(student)
        self.queue = FeatureQueue(config.objectives.queue, config.objectives.projection, config.training.seed)
        self.beside = {"teacher": self.teacher, "queue": self.queue}
        self.distillation = 0.0
        self._untouched = Untouched(student.parameters())
        self._to_push: list[Everyone] = []

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """The share of soft targets at this step."""
        self.distillation = distillation_ramp(self.config.objectives.distillation, step, steps_per_epoch)

    def forward(self, batch: CaptionBatch, key: Key, negatives: Negatives | None = None) -> Output:
        """The losses of a micro-batch. ``negatives``: which hard negatives are taken, in place of those drawn from ``key``."""
        states = self.states(batch, negatives or key, self.distillation)
        self._to_push.append(states.everyone)
        return self.output(states)

    def states(self, batch: CaptionBatch, draws: Key | Negatives, distillation: float) -> PretrainingStates:
        """What the objectives read of a micro-batch: the teacher's targets, everyone's features, the student's states. Collective.

        ``draws``: what the hard negatives are drawn from, or which ones they are.
        """
        batch, settings = self.prepared(batch), self.config.objectives
        reads = frozenset[str]().union(*(one.reads for one in self.objectives))
        with autocast(batch.image.device, self.dtype):
            targets = self.teacher.targets(batch, settings.image_mask_ratio)
            everyone = Everyone.gather(targets, batch, self.queue, local=settings.negatives == "local")
            return PretrainingStates(self.student, settings, batch, targets, everyone, distillation, draws, reads)

    def output(self, states: PretrainingStates) -> Output:
        """The losses of a micro-batch from its states, and their weighted sum with every parameter in its graph."""
        with autocast(states.batch.image.device, self.dtype):
            losses = {one.name: one.loss(states) for one in self.objectives}
            total = sum((one.weight * losses[one.name] for one in self.objectives), states.image_features.new_zeros(()))
        return Output(self._untouched.tie(total), losses, states.features())

    def prepared(self, batch: CaptionBatch) -> CaptionBatch:
        """The batch with normalised pixels, in the weights' type."""
        return replace(batch, image=normalise(batch.image).to(self.student.temp.dtype))

    def end_step(self) -> None:
        """Push the step's features onto the queue, in the order of the global batch; the teacher follows the student.

        The official code lets the teacher follow at the start of the next step, which is the same. The temperature's clamp
        follows the optimizer.
        """
        for everyone in self._to_push:
            self.queue.push(everyone.image, everyone.text, everyone.image_ids, everyone.text_ids)
        self._to_push.clear()
        self.student.clamp_temperature()
        self.teacher.update(self.student, self.config.objectives.momentum)

    def skip_step(self) -> None:
        """Forget the step's features."""
        self._to_push.clear()

    def loaded(self) -> None:
        """Versions before 0.2 saved the temperature before its clamp."""
        self.student.clamp_temperature()

    def flops(self, batch: CaptionBatch) -> float:
        """As `pretraining_flops` counts them at the length of the padded captions; 0 where an objective is left out or added."""
        if [one.name for one in self.objectives] != ["mim", "mlm", "itm", "itc"]:
            return 0.0
        of_pair = pretraining_flops(self.config, batch.input_ids.shape[1], self.config.training.batch)
        return len(batch) * sum(of_pair.values())

    def readings(self) -> dict[str, float]:
        """The contrastive temperature and the share of soft targets."""
        return {"temperature": float(self.student.temp.detach()), "distillation": self.distillation}
