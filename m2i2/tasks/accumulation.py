"""A step in micro-batches whose losses are those of the whole batch, as in GradCache (Gao et al., 2021) and in open_clip.

1. Teacher and student encode every micro-batch, without a graph; of the last one the student's graph is kept.
2. Hard negatives are drawn from the whole batch; their states are fetched from the rows' owners.
3. Each micro-batch goes from these states to its losses, and back to the states, the multimodal encoder and the heads.
4. What states received as negatives goes back to their owners. Each micro-batch but the last is encoded again, with its graph and
   the same dropout, and the gradients go on from its states to the encoders.

At no time there are more graphs than those of one micro-batch's encoders and of one micro-batch's losses, as without accumulation.
Beyond the same batch at once this costs the encoders' forward pass of all micro-batches but one, the projection of negative images,
and memory for the states of all rows and for one more gradient of every weight. Gradients are taken outside the engine's hooks,
which see one backward pass.

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
from m2i2.precision import autocast, full
from m2i2.tasks.negatives import GlobalBatch, Negatives
from m2i2.tasks.states import Encoded, HardNegatives, PretrainingStates, encode, encode_text, excluded, fetch_negatives, leaf
from m2i2.tasks.task import Key, Output, step_generator_seed
from m2i2.tasks.teacher import TeacherTargets

if TYPE_CHECKING:
    from m2i2.tasks.pretraining import PretrainingTask


_AT_ONCE = 4
"""Micro-batches whose images are encoded, and whose targets are computed, in one pass without a graph, which reads each weight
once. It holds one layer's tensors at a time: of so many micro-batches less than what the graph of one keeps of all layers."""


class Accumulation:
    """One step of one rank."""

    def __init__(self, task: "PretrainingTask", batches: Sequence[CaptionBatch], key: Key, scale: Tensor | None = None) -> None:
        """``batches``: the rank's micro-batches, of equally many rows. ``key``: of the step.

        ``scale``: [] what the loss will be multiplied by before it is differentiated; all gradients are computed of that product.
        """
        longest = max(batch.input_ids.shape[1] for batch in batches)
        self._batches = [_padded(batch, longest) for batch in batches]
        self._task, self._key, self._settings = task, key, task.config.objectives
        self._count, self._rows, self._scale = len(batches), len(batches[0]), scale

    def output(self, negatives: Negatives | None = None) -> tuple[Output, GlobalBatch]:
        """The losses of the whole batch, which know every parameter's gradient, and what the queue takes of it. Collective.

        ``negatives``: those of all rows [b], in place of those drawn from the key.
        """
        encoded, kept, targets = self._encode_all()
        global_batch = self._gather(targets)
        fetched = None
        if "matching" in self._task.reads:
            negatives = negatives or self._draw(encoded, global_batch)
            mask = torch.cat([batch.attention_mask for batch in self._batches])
            fetched = fetch_negatives(global_batch, negatives, encoded.image.states, encoded.text, mask)
        parameters = [p for p in self._task.student.parameters() if p.requires_grad]
        gradients, mean_counts = _Gradients(parameters), self._mean_counts(negatives)
        losses, received = dict[str, Tensor](), list[list[Tensor]]()
        for number in range(self._count):
            mine = self._rows_of(number)
            own, hard = encoded.leaves(mine), fetched.leaves(mine) if fetched else None
            part = _Part(
                (own, hard, mean_counts),
                student=self._task.student,
                settings=self._settings,
                batch=self._task.prepared(self._batches[number]),
                targets=targets[number],
                global_batch=global_batch.part(mine.start, self._rows),
                distillation=self._task.distillation,
                draws=negatives.rows(mine) if negatives else self._task.starts,
                reads=self._task.reads,
            )
            self._seed(self._count + number)
            found = self._task.losses(part)
            leaves = [*own.tensors(), *([hard.image, hard.text] if hard else [])]
            share = found["loss"] / self._count
            received.append(gradients.add([share if self._scale is None else share * self._scale], None, leaves))
            losses = {name: losses.get(name, 0) + value.detach() / self._count for name, value in found.items()}
        del part, found
        if fetched is not None:
            self._return(fetched, encoded, received)
        del fetched, encoded
        of_last: Encoded | None = kept
        for number in reversed(range(self._count)):
            gradients.add((of_last or self._encode(number)).tensors(), received.pop())
            of_last = None
        return Output(_Known.apply(losses.pop("loss"), self._scale, gradients.sums(), *parameters), losses, {}), global_batch

    def _rows_of(self, number: int) -> slice:
        return slice(number * self._rows, (number + 1) * self._rows)

    def _seed(self, number: int) -> None:
        """Seed dropout: of the encoders by the micro-batches' numbers, of the multimodal encoder by the numbers that follow."""
        torch.manual_seed(step_generator_seed(self._key._replace(micro=number), rank()))

    @property
    def _with_words(self) -> bool:
        return "words" in self._task.reads

    def _encode(self, number: int) -> Encoded:
        """What the student's encoders make of a micro-batch: the same at each call, dropout included."""
        batch = self._task.prepared(self._batches[number])
        self._seed(number)
        with autocast(batch.image.device, self._task.dtype):
            return encode(self._task.student, batch, self._settings.image_mask_ratio, self._with_words)

    def _encode_all(self) -> tuple[Encoded, Encoded, list[TeacherTargets]]:
        """The student's states of all rows as leaves, those of the last micro-batch with their graph, and the teacher's targets."""
        task, ratio, last = self._task, self._settings.image_mask_ratio, self._count - 1
        targets, encoded = list[TeacherTargets](), list[Encoded]()
        with torch.no_grad(), autocast(task.student.temp.device, task.dtype):
            for start in range(0, self._count, _AT_ONCE):
                some = self._batches[start : start + _AT_ONCE]
                batch = task.prepared(_joined(some))
                targets += _split(task.teacher.targets(batch, ratio), some)
                again = min(len(some), last - start) * self._rows
                if not again:
                    continue
                image = task.student.visual_encoder(batch.image[:again], batch.student_noise[:again], ratio)
                for number in range(start, start + again // self._rows):
                    mine = self._rows_of(number - start)
                    self._seed(number)  # images have no dropout
                    text = encode_text(task.student, self._batches[number], self._with_words)
                    encoded.append(Encoded(image.rows(mine), *text))
        kept = self._encode(last)
        return _concatenated([*encoded, kept]), kept, targets

    def _return(self, fetched: HardNegatives, encoded: Encoded, received: Sequence[list[Tensor]]) -> None:
        """Take the negatives' gradients off the end of what was received, and add them to their owners' states. Collective."""
        of_text, of_image = (torch.cat([one.pop() for one in received]) for _ in range(2))
        owners = [encoded.image.states, encoded.text]
        image, text = torch.autograd.grad([fetched.image, fetched.text], owners, [of_image, of_text])
        for number, (of_states, of_captions, *_) in enumerate(received):
            of_states.add_(image[self._rows_of(number)])
            of_captions.add_(text[self._rows_of(number)])

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
        none_of = excluded(global_batch, self._settings)
        if none_of is not None:
            none_of = none_of[:, : len(teacher_image)]
        return global_batch.draw(text_to_image, image_to_text, none_of, self._task.starts, self._settings.hardness)

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
    """Sums of the gradients of parameters, apart from their ``.grad`` and its hooks."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._sums: list[Tensor | None] = [None] * len(self._parameters)

    def add(self, outputs: Sequence[Tensor], of_outputs: Sequence[Tensor] | None, leaves: Sequence[Tensor] = ()) -> list[Tensor]:
        """Differentiate ``outputs``, whose own gradients are ``of_outputs`` (of a scalar: 1). Their graph is freed.

        Returns the gradients of ``leaves``, tensors of their own.
        """
        found = torch.autograd.grad(outputs, [*self._parameters, *leaves], of_outputs, allow_unused=True)
        owned, count = _owned(found), len(self._parameters)
        later = [(total, one) for total, one in zip(self._sums, owned, strict=False) if total is not None and one is not None]
        if later:
            torch._foreach_add_([total for total, _ in later], [one for _, one in later])
        first = [one if one is None else full(one) for one in owned[:count]]  # micro-batches add up in at least float32
        self._sums = [one if total is None else total for total, one in zip(self._sums, first, strict=True)]
        return [torch.zeros_like(x) if one is None else one for x, one in zip(leaves, owned[count:], strict=True)]

    def sums(self) -> list[Tensor]:
        """Of every parameter: 0 where nothing depends on it."""
        return [torch.zeros_like(p) if one is None else one for p, one in zip(self._parameters, self._sums, strict=True)]


def _owned(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients, each with memory of its own: autograd may give one out for several tensors, or a part of a larger one."""
    seen, found = set[int](), list[Tensor | None]()
    for one in gradients:
        if one is not None:
            storage = one.untyped_storage()
            if storage.data_ptr() in seen or storage.nbytes() != one.nbytes:
                one = one.clone()
            seen.add(storage.data_ptr())
        found.append(one)
    return found


class _Known(torch.autograd.Function):
    """A loss whose gradients are known, perhaps ``scale`` times: a backward pass multiplies and hands them out, once."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, scale: Tensor | None, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients, ctx.scale = gradients, scale
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        torch._foreach_mul_(gradients, factor[0] if ctx.scale is None else factor[0] / ctx.scale)
        return None, None, None, *gradients


def _concatenated(encoded: Sequence[Encoded]) -> Encoded:
    """All rows as leaves of a graph."""
    order, masked = [one.image.order for one in encoded], [one.masked_text for one in encoded]
    return Encoded(
        MaskedImage(
            leaf(torch.cat([one.image.states for one in encoded])),
            torch.cat([one for one in order if one is not None]),
        ),
        leaf(torch.cat([one.text for one in encoded])),
        None if masked[0] is None else leaf(torch.cat([one for one in masked if one is not None])),
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


def _joined(batches: Sequence[CaptionBatch]) -> CaptionBatch:
    """Batches whose captions are padded to one length, as one."""
    tensors = [batch.tensors() for batch in batches]
    joined: dict[str, Any] = {name: torch.cat([one[name] for one in tensors]) for name in tensors[0]}
    size = batches[0].input_ids.numel()
    joined["places"] = torch.cat([batch.places + number * size for number, batch in enumerate(batches)])
    return replace(batches[0], **joined)


def _split(targets: TeacherTargets, batches: Sequence[CaptionBatch]) -> list[TeacherTargets]:
    """The targets of each of the batches that were joined."""
    rows, words = [len(batch) for batch in batches], [len(batch.places) for batch in batches]
    parts = targets.image_features.split(rows), targets.text_features.split(rows), targets.mlm_logits.split(words)
    return [TeacherTargets(*one) for one in zip(*parts, strict=True)]
