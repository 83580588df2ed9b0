"""All contact of the golden runs with the code under test: to be rewritten where its API changes, and nothing else.

A `Session` is one run on one rank: its task, its optimizer, and what it remembers. ``cases`` says what goes in, by name.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from m2i2.backends.choice import choose
from m2i2.config import (
    AnsweringConfig,
    FinetuningConfig,
    ObjectivesConfig,
    OptimizerConfig,
    PretrainingConfig,
    TextConfig,
    TrainingConfig,
    VisionConfig,
)
from m2i2.data.loading.batch import CaptionBatch, QuestionBatch
from m2i2.data.loading.masking import places_of
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.vqa import VQAModel
from m2i2.tasks.negatives import Negatives
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Key
from m2i2.tasks.vqa import VQATask
from m2i2.training.optimizer import adamw, learning_rate
from tests.golden import cases

M = TypeVar("M", bound=nn.Module)
CPU = torch.device("cpu")


class Session:
    """A run of ``case`` on this rank, in double precision, before its first step."""

    def __init__(self, case: cases.Case, rank: int, ranks: int, device: torch.device = CPU) -> None:
        self.case, self.device = case, device
        vision, text, optimizer = VisionConfig(**cases.VISION), TextConfig(**cases.TEXT), OptimizerConfig(**cases.OPTIMIZER)
        training = TrainingConfig(epochs=cases.EPOCHS, batch=cases.BATCH, accumulation=case.accumulation, precision="float32")
        self.optimization = optimizer
        self.task: PretrainingTask | VQATask
        if case.kind == "pretraining":
            objectives = ObjectivesConfig(**cases.OBJECTIVES)
            student = _weighted(PretrainingModel(vision, text, objectives))
            config = PretrainingConfig(vision=vision, text=text, objectives=objectives, optimizer=optimizer, training=training)
            self.task = PretrainingTask(student, config, torch.float64)
            queue = self.task.queue.double()
            queue.image.copy_(cases.queue_start("image"))
            queue.text.copy_(cases.queue_start("text"))
        else:
            answerer = _weighted(VQAModel(vision, text))
            settings = FinetuningConfig(
                vision=vision, text=text, answering=AnsweringConfig(**cases.ANSWERING), optimizer=optimizer, training=training
            )
            self.task = VQATask(answerer, settings, torch.float64)
        self.student: nn.Module = self.task.student.train()
        for module in (self.student, *self.task.beside.values()):
            module.to(device)
        self.optimizer = adamw(self.student, optimizer, choose(torch.device("cpu"), "plain"))

    def begin_step(self, step: int) -> None:
        """What a step's number decides: learning rate and share of soft targets."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optimization, step, cases.STEPS_PER_EPOCH, cases.EPOCHS)
        self.task.begin_step(step, cases.STEPS_PER_EPOCH)

    def losses(self, seen: cases.Micro, step: int, micro: int) -> dict[str, Tensor]:
        """Losses of a micro-batch by name, ``loss`` to be differentiated: the forward pass, with the negatives given."""
        kind = CaptionBatch if self.case.kind == "pretraining" else QuestionBatch
        batch = kind(**_padded({name: tensor.clone() for name, tensor in seen.batch.items()})).to(self.device)
        key = Key(0, step, micro)
        if isinstance(self.task, PretrainingTask):
            self.task.begin_micro_batch(key)
            output = self.task.compute(batch, self._forced(seen.image_negatives, seen.text_negatives))
        else:
            output = self.task.forward(batch, key)
        return {"loss": output.loss, **output.losses}

    def losses_together(self, seen: Sequence[cases.Micro], step: int) -> dict[str, Tensor]:
        """Losses of this rank's micro-batches together, as of one, with the negatives given."""
        assert isinstance(self.task, PretrainingTask)
        batches = [CaptionBatch(**_padded({name: x.clone() for name, x in one.batch.items()})).to(self.device) for one in seen]
        images, texts = ([row for one in seen for row in getattr(one, f"{kind}_negatives")] for kind in ("image", "text"))
        output = self.task.forward_together(batches, Key(0, step, 0), self._forced(images, texts))
        return {"loss": output.loss, **output.losses}

    def end_step(self) -> None:
        """After the optimizer's step: queue and teacher follow."""
        self.task.end_step()

    def state(self) -> dict[str, Mapping[str, Tensor]]:
        """Tensors of student, teacher and queue under their official names (the teacher's without ``_m``)."""
        return {"student": self.student.state_dict(), **{k: module.state_dict() for k, module in self.task.beside.items()}}

    def _forced(self, images: Sequence[int], texts: Sequence[int]) -> Negatives:
        """The given rows of the global batch as hard negatives; -1 where there is none."""
        image, text = torch.tensor(images, device=self.device), torch.tensor(texts, device=self.device)
        return Negatives(image.clamp_min(0), text.clamp_min(0), image >= 0, text >= 0)


def _weighted(model: M) -> M:
    """The model in double precision with the case's weights; the positions, which are not trained, are its own."""
    model.double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("pos_embed"):
                parameter.copy_(cases.weight(name, parameter.shape))
    return model


def _padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Captions as long as every rank's, and where their masked words are, as the loader would have it."""
    if "labels" not in batch:
        return batch
    longer = {"input_ids": cases.PAD, "masked_input_ids": cases.PAD, "attention_mask": 0, "labels": -100}
    more = cases.TEXT["positions"] - batch["labels"].shape[1]
    padded = {name: pad(batch[name], (0, more), value=value) for name, value in longer.items()}
    return {**batch, **padded, "places": torch.from_numpy(places_of(padded["labels"].numpy(), 0.15))}
