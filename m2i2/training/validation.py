"""Validation of pretraining: the losses, and reconstructions of masked images."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from m2i2.data.images.transforms import denormalise, normalise
from m2i2.distributed import mean_over_ranks
from m2i2.files import replacing
from m2i2.models.vision import patchify, unpatchify
from m2i2.precision import autocast
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.tasks.task import Key
from m2i2.training.evaluators import Evaluator, Measured, undisturbed
from m2i2.training.held_out import HeldOutPairs

FOLDER = "validation"
_GREY = 0.0
"""Masked patches in pictures: the mean of normalised pixels."""


class Validation(Evaluator):
    """The losses of training against hard targets (no distillation), so that they can be compared from step to step.

    The queue of the contrast is the run's.
    """

    def __init__(self, task: PretrainingTask, pairs: HeldOutPairs, run: Path) -> None:
        """``run`` is the run's folder."""
        self.task, self.pairs, self.folder = task, pairs, run / FOLDER
        self.every, self.pictures = task.config.validation.every, task.config.validation.pictures

    def measure(self, step: int) -> Measured:
        """The losses of all pairs; on rank 0, pictures in the folder ``validation`` of the run."""
        losses: dict[str, Tensor] = {}
        with undisturbed(self.task.student, self.pairs.process.device):
            for number, batch in enumerate(self.pairs):
                self.task.begin_micro_batch(Key(0, 0, number))
                output = self.task.output(self.task.states(batch, None, distillation=0.0))
                for name, value in {"loss": output.loss, **output.losses}.items():
                    losses[name] = losses.get(name, value.new_zeros(())) + value.float() / self.pairs.batches
            means = mean_over_ranks(torch.stack([value.reshape(()) for value in losses.values()])).tolist()
            pictures = {}
            if self.pairs.process.first and self.pictures and self.task.config.objectives.mim:
                self.folder.mkdir(exist_ok=True)
                pictures["reconstructions"] = self.folder / f"reconstructions-{step:08d}.png"
                with replacing(pictures["reconstructions"]) as file:
                    self._reconstructions().save(file, "PNG")
        return Measured(dict(zip(losses, means, strict=True)), pictures)

    def _reconstructions(self) -> Image.Image:
        """One line per image: original, masked, reconstructed (the masked patches as predicted, the others as they are)."""
        encoder, patch = self.task.student.visual_encoder, self.task.student.vision.patch_size
        stored, rows, device = self.pairs.stored(), self.pairs.first_rows(self.pictures), self.pairs.process.device
        pixels = torch.stack([stored[number].image[row] for number, row in rows]).to(device)
        noise = torch.stack([stored[number].student_noise[row] for number, row in rows]).to(device)
        image = normalise(pixels)
        with autocast(device, self.task.dtype):
            seen = encoder(image, noise, self.task.config.objectives.image_mask_ratio)
            predicted = encoder.reconstruct(seen).float()
        hidden = seen.hidden.unsqueeze(-1).expand(-1, -1, patch * patch * 3)
        patches = patchify(image, patch)
        masked = unpatchify(patches.scatter(1, hidden, _GREY), patch)
        restored = unpatchify(patches.scatter(1, hidden, predicted), patch)
        return _sheet({"original": pixels, "masked": denormalise(masked), "predicted": denormalise(restored)})


def _sheet(columns: dict[str, Tensor]) -> Image.Image:
    """Images [n, 3, H, H] uint8 in columns under their titles."""
    rows, side = next(iter(columns.values())).shape[0], next(iter(columns.values())).shape[-1]
    gap, head = 4, 14
    sheet = Image.new("RGB", (len(columns) * (side + gap) - gap, head + rows * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, content) in enumerate(columns.items()):
        draw.text((column * (side + gap) + 2, 0), title, fill="black")
        for row in range(rows):
            sheet.paste(picture(content[row]), (column * (side + gap), head + row * (side + gap)))
    return sheet


def picture(pixels: Tensor) -> Image.Image:
    """[3, H, W] uint8 as an image."""
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))
