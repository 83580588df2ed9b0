"""VQA finetuning as a task: the answering model in the engine and, where it is distilled, its teacher beside it."""

import torch
from torch import Tensor, nn

from m2i2.config import FinetuningConfig
from m2i2.data.images.transforms import normalise
from m2i2.data.loading.batch import QuestionBatch
from m2i2.models.flops import finetuning_flops
from m2i2.models.vqa import VQAModel
from m2i2.tasks.teacher import VQATeacher
from m2i2.training.optimizer import distillation_ramp
from m2i2.training.processes import Process
from m2i2.training.trainer import Task


class FinetuningTask(Task):
    """The answers' token loss, with soft targets of a momentum teacher unless ``answering.distillation`` is 0."""

    student: VQAModel

    def __init__(self, student: VQAModel, config: FinetuningConfig, process: Process, dtype: torch.dtype) -> None:
        self.student = student
        self.teacher = VQATeacher(student) if config.answering.distillation else None
        self.beside = {"teacher": self.teacher} if self.teacher is not None else {}
        self.config, self.process, self.dtype = config, process, dtype
        self.distillation = 0.0

    def begin_step(self, step: int, steps_per_epoch: int) -> None:
        """The share of soft targets at this step."""
        self.distillation = distillation_ramp(self.config.answering.distillation, step, steps_per_epoch)

    def end_step(self) -> None:
        """The teacher follows the student."""
        if self.teacher is not None:
            self.teacher.update(self.student, self.config.answering.momentum)

    def flops(self, batch: QuestionBatch) -> float:
        """As `finetuning_flops` counts them at the lengths of the padded questions and answers."""
        of_question = finetuning_flops(self.config, batch.question_ids.shape[1], batch.answer_ids.shape[1])
        return len(batch.item) * sum(of_question.values())

    def losses(self, engine: nn.Module, batch: QuestionBatch, step: int, micro: int) -> dict[str, Tensor]:
        """The mean answer loss of a micro-batch."""
        batch.image = normalise(batch.image)
        logits = None
        if self.teacher is not None:
            with torch.autocast(self.process.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                logits = self.teacher.targets(batch)
        return {"loss": engine(batch, self.distillation, logits, self.config.answering.answer_weight)}
