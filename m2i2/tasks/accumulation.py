"""A step in micro-batches whose losses are those of the whole batch, as in GradCache (Gao et al., 2021) and in open_clip.

1. Teacher and student encode every micro-batch, without a graph.
2. Hard negatives are drawn from the whole batch; their states are fetched from the rows' owners.
3. Each micro-batch goes from these states to its losses, and back to the states, the multimodal encoder and the heads.
4. What states received as negatives goes back to their owners. Each micro-batch is encoded again, with its graph and the same
   dropout, and the gradients go on from its states to the encoders.

Beyond the same batch at once this costs the encoders' forward pass, the projection of negative images, and memory for the states
of all rows and for one more gradient of every weight. Gradients are taken outside the engine's hooks, which see one backward pass.

Shapes: b rows of this rank in n micro-batches, N image tokens, L text tokens, D wide.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from m2i2.data.loading.batch import CaptionBatch
from m2i2.distributed import mean_over_ranks, rank
from m2i2.models.text import KeysValues
from m2i2.models.vision import MaskedImage
from m2i2.objectives.itc import similarities
from m2i2.objectives.itm import rows_present
from m2i2.precision import autocast
from m2i2.tasks.negatives import GlobalBatch, Negatives
from m2i2.tasks.states import Encoded, HardNegatives, PretrainingStates, encode, fetch_negatives
from m2i2.tasks.task import Key, Output, step_generator_seed
from m2i2.tasks.teacher import TeacherTargets

if TYPE_CHECKING:
    from m2i2.tasks.pretraining import PretrainingTask


class Accumulation:
    """One step of one rank."""

    def __init__(self, task: "PretrainingTask", batches: Sequence[CaptionBatch], key: Key) -> None:
        """``batches``: the rank's micro-batches, of equally many rows. ``key``: of the step."""
        longest = max(batch.input_ids.shape[1] for batch in batches)
        self._batches = [_padded(batch, longest) for batch in batches]
        self._task, self._key, self._settings = task, key, task.config.objectives

    def output(self, negatives: Negatives | None = None) -> tuple[Output, GlobalBatch]:
        """The losses of the whole batch, which know every parameter's gradient, and what the queue takes of it. Collective.

        ``negatives``: those of all rows [b], in place of those drawn from the key.
        """
        count, rows = len(self._batches), len(self._batches[0])
        encoded, targets = self._encode_all()
        global_batch = self._gather(targets)
        fetched = hard = None
        if "matching" in self._task.reads:
            negatives = negatives or self._draw(encoded, global_batch)
            mask = torch.cat([batch.attention_mask for batch in self._batches])
            fetched = fetch_negatives(global_batch, negatives, encoded.image.states, encoded.text, mask)
            hard = HardNegatives(_leaf(fetched.image), _leaf(fetched.text), fetched.text_mask)
        parameters = [p for p in self._task.student.parameters() if p.requires_grad]
        gradients = _Gradients([*parameters, *encoded.tensors(), *([hard.image, hard.text] if hard else [])])
        mean_counts, losses = self._mean_counts(negatives), dict[str, Tensor]()
        for number in range(count):
            mine = slice(number * rows, (number + 1) * rows)
            part = _Part(
                (encoded.rows(mine), hard.rows(mine) if hard else None, mean_counts),
                student=self._task.student,
                settings=self._settings,
                batch=self._task.prepared(self._batches[number]),
                targets=targets[number],
                global_batch=global_batch.part(mine.start, rows),
                distillation=self._task.distillation,
                draws=negatives.rows(mine) if negatives else self._task.starts,
                reads=self._task.reads,
            )
            self._seed(count + number)
            found = self._task.losses(part)
            gradients.add([found["loss"] / count])
            losses = {name: losses.get(name, 0) + value.detach() / count for name, value in found.items()}
        del part, found
        if fetched is not None and hard is not None:
            gradients.add([fetched.image, fetched.text], [gradients.of(hard.image), gradients.of(hard.text)])
        received = [gradients.of(states) for states in encoded.tensors()]
        for number in range(count):
            mine = slice(number * rows, (number + 1) * rows)
            gradients.add(self._encode(number).tensors(), [gradient[mine] for gradient in received])
        loss = _Known.apply(losses.pop("loss"), [gradients.of(p) for p in parameters], *parameters)
        return Output(loss, losses, {}), global_batch

    def _seed(self, number: int) -> None:
        """Seed dropout: of the encoders by the micro-batches' numbers, of the multimodal encoder by the numbers that follow."""
        torch.manual_seed(step_generator_seed(self._key._replace(micro=number), rank()))

    def _encode(self, number: int) -> Encoded:
        """What the student's encoders make of a micro-batch: the same at each call, dropout included."""
        batch = self._task.prepared(self._batches[number])
        self._seed(number)
        with autocast(batch.image.device, self._task.dtype):
            return encode(self._task.student, batch, self._settings.image_mask_ratio, "words" in self._task.reads)

    def _encode_all(self) -> tuple[Encoded, list[TeacherTargets]]:
        """The student's states of all rows, as leaves, and the teacher's targets of each micro-batch."""
        encoded, targets = [], []
        with torch.no_grad():
            for number, batch in enumerate(self._batches):
                encoded.append(self._encode(number))
                with autocast(batch.image.device, self._task.dtype):
                    targets.append(self._task.teacher.targets(self._task.prepared(batch), self._settings.image_mask_ratio))
        return _concatenated(encoded), targets

    def _gather(self, targets: Sequence[TeacherTargets]) -> GlobalBatch:
        """The teacher's features of all rows of all ranks."""
        mine = (
            torch.cat([one.image_features for one in targets]),
            torch.cat([one.text_features for one in targets]),
            torch.cat([batch.image_id for batch in self._batches]),
            torch.cat([batch.caption_id for batch in self._batches]),
        )
        return GlobalBatch.of(mine, self._task.queue, self._settings.negatives == "local")

    @torch.no_grad()
    def _draw(self, encoded: Encoded, global_batch: GlobalBatch) -> Negatives:
        """The hard negatives of all rows."""
        student, device = self._task.student, encoded.text.device
        with autocast(device, self._task.dtype):
            image, text = student.image_features(encoded.image.states), student.text_features(encoded.text)
        teacher_image, teacher_text, *_ = global_batch.candidates()
        with torch.autocast(device.type, enabled=False):
            text_to_image = similarities(text, [teacher_image], student.temp)
            image_to_text = similarities(image, [teacher_text], student.temp)
        excluded = None
        if self._settings.false_negatives == "exclude":
            excluded = global_batch.excluded()[:, : len(teacher_image)]
        return global_batch.draw(text_to_image, image_to_text, excluded, self._task.starts)

    def _mean_counts(self, negatives: Negatives | None) -> Tensor:
        """[2] rows of the matching, and masked words, of a micro-batch: the means over micro-batches and ranks."""
        words = torch.stack([(batch.labels != -100).sum() for batch in self._batches]).sum()
        rows = rows_present(negatives.image_there, negatives.text_there).sum() if negatives else torch.zeros_like(words)
        return mean_over_ranks(torch.stack([rows, words]).to(self._task.student.temp.dtype)) / len(self._batches)


class _Part(PretrainingStates):
    """The states of a micro-batch whose encoders have run already, among negatives of the whole batch."""

    def __init__(self, given: tuple[Encoded, HardNegatives | None, Tensor], **arguments: Any) -> None:
        """``given``: states, hard negatives and mean counts of the micro-batch; ``arguments``: those of `PretrainingStates`."""
        self._given, self._hard, self._counts = given
        super().__init__(**arguments)

    def _encode(self) -> Encoded:
        return self._given

    @cached_property
    def _mean_counts(self) -> Tensor:
        return self._counts

    def _negative_states(self, keys_values: list[KeysValues]) -> tuple[list[KeysValues], Tensor, Tensor]:
        assert self._hard is not None
        return self.student.text_encoder.bert.image_keys_values(self._hard.image), self._hard.text, self._hard.text_mask


class _Gradients:
    """Sums of the gradients of some tensors, apart from their ``.grad`` and its hooks."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._sums = [torch.zeros_like(one) for one in tensors]
        self._places = {id(one): place for place, one in enumerate(tensors)}

    def add(self, outputs: Sequence[Tensor], of_outputs: Sequence[Tensor] | None = None) -> None:
        """Differentiate ``outputs``, whose own gradients are ``of_outputs`` (of a scalar: 1). Their graph is freed."""
        found = torch.autograd.grad(outputs, self._tensors, of_outputs, allow_unused=True)
        reached = [(total, one) for total, one in zip(self._sums, found, strict=True) if one is not None]
        torch._foreach_add_([total for total, _ in reached], [one for _, one in reached])

    def of(self, tensor: Tensor) -> Tensor:
        """The sum of one tensor's gradients."""
        return self._sums[self._places[id(tensor)]]


class _Known(torch.autograd.Function):
    """A loss whose gradients are known: a backward pass multiplies and hands them out, once."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        torch._foreach_mul_(gradients, factor[0])
        return None, None, *gradients


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _concatenated(encoded: Sequence[Encoded]) -> Encoded:
    """All rows as leaves of a graph."""
    order, masked = [one.image.order for one in encoded], [one.masked_text for one in encoded]
    return Encoded(
        MaskedImage(
            _leaf(torch.cat([one.image.states for one in encoded])),
            torch.cat([one for one in order if one is not None]),
        ),
        _leaf(torch.cat([one.text for one in encoded])),
        None if masked[0] is None else _leaf(torch.cat([one for one in masked if one is not None])),
    )


def _padded(batch: CaptionBatch, length: int) -> CaptionBatch:
    """The batch with captions padded to ``length``."""
    before = batch.input_ids.shape[1]
    if before == length:
        return batch
    more = (0, length - before)
    return replace(
        batch,
        input_ids=pad(batch.input_ids, more),
        attention_mask=pad(batch.attention_mask, more),
        masked_input_ids=pad(batch.masked_input_ids, more),
        labels=pad(batch.labels, more, value=-100),
        places=batch.places // before * length + batch.places % before,
    )
