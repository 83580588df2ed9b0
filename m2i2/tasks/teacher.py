"""The momentum teachers, and what they say of a batch."""

from typing import NamedTuple

import torch
from torch import Tensor

from m2i2.data.loading.batch import CaptionBatch, QuestionBatch
from m2i2.models.pretraining import Encoders, PretrainingModel
from m2i2.models.text import ImageRows
from m2i2.models.vqa import VQAModel
from m2i2.tasks.task import follow, move_towards


class TeacherTargets(NamedTuple):
    """What the momentum teacher says of a rank's micro-batch."""

    image_features: Tensor
    """[b, projection], L2-normalised."""
    text_features: Tensor
    mlm_logits: Tensor
    """[M, V] at the masked positions, ``places`` of the batch."""


class Teacher(Encoders):
    """The pretraining teacher: both encoders and projections, no pixel decoder."""

    def __init__(self, student: PretrainingModel) -> None:
        super().__init__(student.vision, student.text, student.objectives, with_decoder=False)
        follow(self, student)

    def update(self, student: PretrainingModel, momentum: float) -> None:
        """Follow the student by one optimizer step."""
        move_towards(self, student, momentum)

    @torch.no_grad()
    def targets(self, batch: CaptionBatch, mask_ratio: float) -> TeacherTargets:
        """Features, and logits at the masked words, of a micro-batch; the image is masked by the teacher's own noise."""
        image = self.visual_encoder(batch.image, batch.teacher_noise, mask_ratio).states
        bert, mask, rows = self.text_encoder.bert, batch.attention_mask, len(batch)
        text = bert.encode(torch.cat([batch.input_ids, batch.masked_input_ids]), torch.cat([mask, mask]))
        fused = bert.fuse(text[rows:], mask, [ImageRows(bert.image_keys_values(image), 1)])
        chosen = fused.flatten(0, 1).index_select(0, batch.places)
        logits = self.text_encoder.logits(chosen)
        return TeacherTargets(self.image_features(image), self.text_features(text[:rows]), logits)


class VQATeacher(VQAModel):
    """The finetuning teacher: a whole answering model."""

    def __init__(self, student: VQAModel) -> None:
        super().__init__(student.vision, student.text)
        follow(self, student)

    def update(self, student: VQAModel, momentum: float) -> None:
        """Follow the student by one optimizer step."""
        move_towards(self, student, momentum)

    @torch.no_grad()
    def targets(self, batch: QuestionBatch) -> Tensor:
        """Logits [B, A - 1, V] of the answers' next tokens."""
        return self.answer_logits(batch.image, batch.question_ids, batch.question_mask, batch.answer_ids)
