"""Pretraining as a task: the student, the teacher and the queue beside it, and the weighted objectives."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from m2i2.config import PretrainingConfig
from m2i2.data.images.transforms import normalise
from m2i2.data.loading.batch import CaptionBatch
from m2i2.data.loading.sampling import Share
from m2i2.models.flops import pretraining_flops
from m2i2.models.pretraining import PretrainingModel
from m2i2.objectives.registry import BUILT_IN, active
from m2i2.precision import autocast
from m2i2.tasks.accumulation import Accumulation
from m2i2.tasks.negatives import GlobalBatch, Negatives
from m2i2.tasks.noise import counter_start
from m2i2.tasks.queue import FeatureQueue
from m2i2.tasks.states import PretrainingStates
from m2i2.tasks.task import Key, Output, Ramp, Task, Untouched
from m2i2.tasks.teacher import Teacher, following


class PretrainingTask(Task):
    """The objectives, the momentum teacher and the queue of one run."""

    student: PretrainingModel

    def __init__(self, student: PretrainingModel, config: PretrainingConfig, dtype: torch.dtype) -> None:
        """``dtype``: of matrix products."""
        self.student, self.config, self.dtype = student, config, dtype
        self.objectives = active(config.objectives)
        self.reads = frozenset[str]().union(*(one.reads for one in self.objectives))
        """Which of ``matching`` and ``words`` the objectives read."""
        student.clamp_temperature()
        self.teacher = Teacher(student)
        self.queue = FeatureQueue(config.objectives.queue, config.objectives.projection, config.training.seed)
        self.beside = {"teacher": self.teacher, "queue": self.queue}
        self._ramp = Ramp(config.objectives.distillation, student)
        self.starts = torch.zeros(2, dtype=torch.int64)
        self._untouched = Untouched(student.parameters())
        self._to_push: list[GlobalBatch] = []

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """The share of soft targets at this step."""
        self._ramp.begin_step(step, steps_per_epoch)

    @property
    def distillation(self) -> float | Tensor:
        """The share of soft targets at this step."""
        return self._ramp.value

    def begin_micro_batch(self, key: Key) -> None:
        """Where the counters of the hard negatives' draws begin."""
        self.starts = self.starts.to(self.student.temp.device)
        for stream in range(2):
            self.starts[stream].fill_(counter_start(key, stream))

    def compute(self, batch: CaptionBatch, negatives: Negatives | None = None) -> Output:
        """The losses of a micro-batch. ``negatives``: which hard negatives are taken, in place of drawn ones."""
        states = self.states(batch, negatives, self.distillation)
        self._to_push.append(states.global_batch)
        return self.output(states)

    def forward_together(self, batches: Sequence[CaptionBatch], key: Key, negatives: Negatives | None = None) -> Output:
        """The losses of all micro-batches of a step. Collective."""
        self.begin_micro_batch(key)
        return self.compute_together(batches, key, negatives=negatives)

    def compute_together(
        self, batches: Sequence[CaptionBatch], key: Key, scale: Tensor | None = None, negatives: Negatives | None = None
    ) -> Output:
        """The losses of the whole batch, computed micro-batch by micro-batch: those that `compute` gives of it at once."""
        output, global_batch = Accumulation(self, batches, key, scale).output(negatives)
        self._to_push.append(global_batch)
        return output

    def states(self, batch: CaptionBatch, negatives: Negatives | None, distillation: float | Tensor) -> PretrainingStates:
        """What the objectives read of a micro-batch: the teacher's targets, the global batch, the student's states. Collective.

        ``negatives``: the hard negatives; None draws them from the micro-batch's key.
        """
        batch, settings = self.prepared(batch), self.config.objectives
        draws = self.starts if negatives is None else negatives
        with autocast(batch.image.device, self.dtype):
            targets = self.teacher.targets(batch, settings.image_mask_ratio)
            global_batch = GlobalBatch.gather(targets, batch, self.queue, local=settings.negatives == "local")
            return PretrainingStates(self.student, settings, batch, targets, global_batch, distillation, draws, self.reads)

    def output(self, states: PretrainingStates) -> Output:
        """The losses of a micro-batch from its states, and their weighted sum with every parameter in its graph."""
        losses = self.losses(states)
        return Output(self._untouched.tie(losses.pop("loss")), losses, states.features())

    def losses(self, states: PretrainingStates) -> dict[str, Tensor]:
        """The losses of a micro-batch by name, and ``loss``, their weighted sum."""
        with autocast(states.batch.image.device, self.dtype):
            losses = {one.name: one.loss(states) for one in self.objectives}
            total = sum((one.weight * losses[one.name] for one in self.objectives), states.image_features.new_zeros(()))
        return {"loss": total, **losses}

    def prepared(self, batch: CaptionBatch) -> CaptionBatch:
        """The batch with normalised pixels, in the weights' type."""
        return replace(batch, image=normalise(batch.image).to(self.student.temp.dtype))

    def end_step(self, applied: Tensor | None = None) -> None:
        """Push the step's features onto the queue, in the order of the global batch; the teacher follows the student.

        The official code updates the teacher at the start of the next step, which is equivalent. The temperature's clamp
        follows the optimizer.
        """
        for global_batch in self._to_push:
            self.queue.push(global_batch.image, global_batch.text, global_batch.image_ids, global_batch.text_ids, applied)
        self._to_push.clear()
        self.student.clamp_temperature()
        self.teacher.update(self.student, self.config.objectives.momentum, applied)

    def forget(self) -> None:
        """Drop the features of an unfinished step."""
        self._to_push.clear()

    def placed(self) -> None:
        """Place the teacher's weights like the student's."""
        following(self.teacher, self.student).lay_out()

    def loaded(self) -> None:
        """Clamp the temperature: checkpoints written before 0.2 may hold an unclamped value."""
        self.student.clamp_temperature()

    def remarks(self, share: Share) -> list[str]:
        """What accumulation and local negatives mean for the negatives."""
        return [*self._of_accumulation(share), *self._of_local_negatives(share)]

    def _of_local_negatives(self, share: Share) -> list[str]:
        rows = share.micro_batch * (share.accumulation if share.together else 1)
        if self.config.objectives.negatives != "local" or rows > 1:
            return []
        return [
            "objectives.negatives=local with one pair per rank leaves no hard negatives: image-text matching "
            "sees true pairs alone. Take objectives.negatives=global, fewer ranks or a larger training.batch."
        ]

    @staticmethod
    def _of_accumulation(share: Share) -> list[str]:
        if share.accumulation == 1:
            return []
        if share.together:
            return [
                f"With accumulation {share.accumulation}, the losses are those of the whole batch of {share.batch}; images and "
                f"captions are encoded twice for it (objectives.scope=micro_batch does not)."
            ]
        return [
            f"With accumulation {share.accumulation}, in-batch and hard negatives come from micro-batches of "
            f"{share.batch // share.accumulation} samples, not from the whole batch of {share.batch}; "
            f"the word loss is the mean of the micro-batches' means."
        ]

    def flops(self, batch: CaptionBatch) -> float:
        """As `pretraining_flops` counts them at the length of the padded captions; 0 where an objective is left out or added."""
        if [one.name for one in self.objectives] != list(BUILT_IN):
            return 0.0
        of_pair = pretraining_flops(self.config, batch.input_ids.shape[1], self.config.training.batch)
        return len(batch) * sum(of_pair.values())

    def readings(self) -> dict[str, float]:
        """The contrastive temperature and the share of soft targets."""
        return {"temperature": float(self.student.temp.detach()), "distillation": float(self._ramp.value)}
