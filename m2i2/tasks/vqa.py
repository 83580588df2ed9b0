"""VQA finetuning as a task: the answering model and, where it is distilled, its teacher beside it."""

from dataclasses import replace

import torch
from torch import Tensor

from m2i2.config import FinetuningConfig
from m2i2.data.images.transforms import normalise
from m2i2.data.loading.batch import QuestionBatch
from m2i2.models.flops import finetuning_flops
from m2i2.models.vqa import VQAModel
from m2i2.objectives.answers import answer_loss
from m2i2.precision import autocast
from m2i2.tasks.task import Output, Ramp, Task
from m2i2.tasks.teacher import VQATeacher, following


class VQATask(Task):
    """The answers' token loss, with soft targets of a momentum teacher unless ``answering.distillation`` is 0."""

    student: VQAModel

    def __init__(self, student: VQAModel, config: FinetuningConfig, dtype: torch.dtype) -> None:
        """``dtype``: of matrix products."""
        self.student, self.config, self.dtype = student, config, dtype
        self.teacher = VQATeacher(student) if config.answering.distillation else None
        self.beside = {"teacher": self.teacher} if self.teacher is not None else {}
        self._ramp = Ramp(config.answering.distillation, student)

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """The share of soft targets at this step."""
        self._ramp.begin_step(step, steps_per_epoch)

    def compute(self, batch: QuestionBatch) -> Output:
        """The mean answer loss of a micro-batch."""
        batch = replace(batch, image=normalise(batch.image).to(self.student.visual_encoder.cls_token.dtype))
        with autocast(batch.image.device, self.dtype):
            soft = self.teacher.targets(batch) if self.teacher is not None else None
            logits = self.student.answer_logits(batch.image, batch.question_ids, batch.question_mask, batch.answer_ids)
            weight = self.config.answering.answer_weight
            loss = answer_loss(logits, batch.answer_ids, batch.answer_mask, soft, self._ramp.value, weight)
        return Output(loss, {}, {})

    def end_step(self, applied: Tensor | None = None) -> None:
        """The teacher follows the student."""
        if self.teacher is not None:
            self.teacher.update(self.student, self.config.answering.momentum, applied)

    def placed(self) -> None:
        """Place the teacher's weights like the student's."""
        if self.teacher is not None:
            following(self.teacher, self.student).lay_out()

    def flops(self, batch: QuestionBatch) -> float:
        """As `finetuning_flops` counts them at the lengths of the padded questions and answers."""
        of_question = finetuning_flops(self.config, batch.question_ids.shape[1], batch.answer_ids.shape[1])
        return len(batch.item) * sum(of_question.values())
