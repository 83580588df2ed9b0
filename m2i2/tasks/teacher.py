"""The momentum teachers: float32 moving averages of the students outside the engine, and their outputs for a batch.

They run without dropout, so that targets do not depend on ranks; the official ``_m`` modules stay in training mode. Without
dropout, as in the parity fixtures, both are the same.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from m2i2.data.loading.batch import CaptionBatch, QuestionBatch
from m2i2.models.pretraining import Encoders, PretrainingModel
from m2i2.models.text import ImageRows
from m2i2.models.vqa import VQAModel
from m2i2.tasks.flat import Pair, Runs, lay_out


class Following:
    """A teacher's weights beside those of the student that it follows, by their names."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        students = dict(student.named_parameters())
        self._pairs = [Pair(parameter, students[name]) for name, parameter in teacher.named_parameters()]
        self._runs = Runs(self._pairs)
        self.student = student

    @torch.no_grad()
    def move(self, momentum: float, applied: Tensor | None = None) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student.

        ``applied``: [] bool, whether to do it, for decisions that only the device knows; None means yes.
        """
        runs = self._runs()
        dtype, device = runs[0].leader.dtype, runs[0].leader.device
        share = torch.full((), 1 - momentum, dtype=dtype, device=device)
        if applied is not None:
            share = share * applied
        for one in runs:
            one.follower.lerp_(one.leader, share)

    def lay_out(self) -> None:
        """Place the teacher's weights in memory as the student's are, so that few kernels move all of them."""
        lay_out(self._pairs)


def following(teacher: nn.Module, student: nn.Module) -> Following:
    """The pairs of these two, which the teacher keeps for the next time."""
    kept: Following | None = teacher.__dict__.get("_following")
    if kept is None or kept.student is not student:
        kept = teacher.__dict__["_following"] = Following(teacher, student)
    return kept


def initialise_from(teacher: nn.Module, student: nn.Module) -> None:
    """Copy the student's weights into the teacher; no gradient, evaluation mode."""
    state = student.state_dict()
    teacher.to(next(student.parameters()).dtype)
    teacher.load_state_dict({name: state[name] for name in teacher.state_dict()})
    teacher.eval().requires_grad_(False)


class TeacherTargets(NamedTuple):
    """The teacher's outputs for a rank's micro-batch."""

    image_features: Tensor
    """[b, projection], L2-normalised."""
    text_features: Tensor
    mlm_logits: Tensor
    """[M, V] at the masked positions, ``places`` of the batch."""


class Teacher(Encoders):
    """The pretraining teacher: both encoders and projections, no pixel decoder."""

    def __init__(self, student: PretrainingModel) -> None:
        super().__init__(student.vision, student.text, student.objectives, with_decoder=False)
        initialise_from(self, student)

    def update(self, student: PretrainingModel, momentum: float, applied: Tensor | None = None) -> None:
        """Move towards the student, once per optimizer step that was ``applied``."""
        following(self, student).move(momentum, applied)

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
        initialise_from(self, student)

    def update(self, student: VQAModel, momentum: float, applied: Tensor | None = None) -> None:
        """Move towards the student, once per optimizer step that was ``applied``."""
        following(self, student).move(momentum, applied)

    @torch.no_grad()
    def targets(self, batch: QuestionBatch) -> Tensor:
        """Logits [B, A - 1, V] of the answers' next tokens."""
        return self.answer_logits(batch.image, batch.question_ids, batch.question_mask, batch.answer_ids)
