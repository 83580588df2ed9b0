"""Validation of pretraining: the four losses, image-text retrieval, and reconstructions of masked images."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from m2i2.config import PretrainingConfig
from m2i2.data.images.transforms import EvaluationTransform, denormalise, normalise
from m2i2.data.loading.batch import CaptionBatch
from m2i2.data.loading.corpus import Corpus
from m2i2.data.loading.loader import CaptionRows, Loader
from m2i2.data.loading.sampling import Share
from m2i2.data.text.tokenizer import Tokenizer
from m2i2.distributed import all_gather, mean_over_ranks
from m2i2.files import write_text
from m2i2.models.vision import patchify, unpatchify
from m2i2.tasks.pretraining import PretrainingTask, negative_noise
from m2i2.training.processes import Process
from m2i2.training.retrieval import recalls
from m2i2.training.validation import Measured, Validation, undisturbed

FOLDER = "validation"
_GREY = 0.0
"""Masked patches in pictures: the mean of normalised pixels."""
_SHOWN = 3
"""Captions that an example of retrieval lists."""


class PretrainingValidation(Validation):
    """The same pairs every time, whole images, with masks of their own; each rank takes its share of every batch.

    Losses are those of training against hard targets (no distillation), so that they can be compared from step to step.
    The queue of the contrast is the run's. Retrieval sees whole images.
    """

    def __init__(
        self, task: PretrainingTask, corpus: Corpus, tokenizer: Tokenizer, config: PretrainingConfig, process: Process, run: Path
    ) -> None:
        """``corpus`` has at least as many items as there are ranks; ``run`` is the run's folder."""
        self.every = config.validation.every
        self.task, self.tokenizer, self.process, self.pictures = task, tokenizer, process, config.validation.pictures
        self.objectives = config.objectives
        self.folder = run / FOLDER
        batch = min(config.training.batch // config.training.accumulation, len(corpus)) // process.ranks * process.ranks
        whole = EvaluationTransform(size=config.vision.image_size)
        rows = CaptionRows(
            augmentation=lambda encoded, rng, name: whole(encoded, name),
            tokenizer=tokenizer,
            max_words=config.data.max_words,
            max_tokens=config.data.max_tokens,
            text_mask_ratio=config.objectives.text_mask_ratio,
            patches=config.vision.patches,
        )
        share = Share(batch, 1, process.rank, process.ranks)
        self._loader: Loader[CaptionBatch] = Loader(corpus, rows, share, epochs=1, seed=0, window=config.data.window, workers=0)
        self._count = min(max(1, config.validation.pairs // batch), self._loader.steps_per_epoch)
        self._batches: list[CaptionBatch] = []

    @property
    def pairs(self) -> int:
        """Pairs that are measured."""
        return self._count * self._loader.share.batch

    def measure(self, step: int) -> Measured:
        """Losses and recalls of all pairs; on rank 0, pictures and examples in the folder ``validation`` of the run."""
        with undisturbed(self.task.student, self.process.device):
            if not self._batches:
                self._batches = list(islice(self._loader, self._count))
            losses: dict[str, Tensor] = {}
            images, texts, identities, ids = [], [], [], []
            for number, stored in enumerate(self._batches):
                batch = self.task.prepared(stored.to(self.process.device))
                for name, value in self._losses(batch, number).items():
                    losses[name] = losses.get(name, value.new_zeros(())) + value.float() / self._count
                image, text = self._features(batch)
                images.append(all_gather(image))
                texts.append(all_gather(text))
                identities.append(torch.stack([all_gather(batch.image_id), all_gather(batch.caption_id)]))
                ids += all_gather(batch.input_ids).tolist()
            means = mean_over_ranks(torch.stack([losses[name].reshape(()) for name in losses])).tolist()
            similarity = torch.cat(images) @ torch.cat(texts).T
            image_id, caption_id = torch.cat(identities, dim=1)
            right = (image_id[:, None] == image_id) | (caption_id[:, None] == caption_id)
            pictures = self._write(step, similarity, right, ids) if self.process.first and self.pictures else {}
        values = {**dict(zip(losses, means, strict=True)), **recalls(similarity, right), "pairs": float(self.pairs)}
        return Measured(values, pictures)

    def _autocast(self) -> torch.autocast:
        dtype = self.task.dtype
        return torch.autocast(self.process.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def _losses(self, batch: CaptionBatch, number: int) -> dict[str, Tensor]:
        with self._autocast():
            targets = self.task.teacher.targets(batch, self.objectives.image_mask_ratio)
            noise = negative_noise(number, len(batch), self.process, self.process.device)
            return self.task.weighted(self.task.student(batch, targets, self.task.queue, noise, 0.0))

    def _features(self, batch: CaptionBatch) -> tuple[Tensor, Tensor]:
        """Features [b, projection] of whole images and of captions."""
        student = self.task.student
        with self._autocast():
            image = student.image_features(student.visual_encoder(batch.image).states)
            text = student.text_features(student.text_encoder.bert.encode(batch.input_ids, batch.attention_mask))
        return image.float(), text.float()

    def _write(self, step: int, similarity: Tensor, right: Tensor, ids: list[list[int]]) -> dict[str, Path]:
        """Reconstructions, and the captions that are nearest to some images; returns the pictures."""
        self.folder.mkdir(exist_ok=True)
        size = self._loader.share.micro_batch
        rows = [(number, row) for number in range(self._count) for row in range(size)][: self.pictures]
        examples = []
        for number, row in rows:
            query = number * self._loader.share.batch + row
            pixels = self._batches[number].image[row]
            name = f"image-{int(self._batches[number].item[row])}.png"
            if not (self.folder / name).exists():
                _picture(pixels).save(self.folder / name)
            nearest = similarity[query].topk(min(_SHOWN, self.pairs))
            found = [
                {"caption": self.tokenizer.decode(ids[i]), "similarity": round(s, 4), "right": bool(right[query, i])}
                for i, s in zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
            ]
            examples.append({"image": name, "caption": self.tokenizer.decode(ids[query]), "found": found})
        content = {"step": step, "pairs": self.pairs, "image_to_text": examples}
        write_text(self.folder / f"retrieval-{step:08d}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        if not self.objectives.mim:
            return {}
        path = self.folder / f"reconstructions-{step:08d}.png"
        self._reconstructions(rows).save(path)
        return {"reconstructions": path}

    def _reconstructions(self, rows: list[tuple[int, int]]) -> Image.Image:
        """A line an image: original, masked, reconstructed (the masked patches as predicted, the others as they are)."""
        encoder, patch = self.task.student.visual_encoder, self.task.student.vision.patch_size
        pixels = torch.stack([self._batches[number].image[row] for number, row in rows]).to(self.process.device)
        noise = torch.stack([self._batches[number].student_noise[row] for number, row in rows]).to(self.process.device)
        image = normalise(pixels)
        with self._autocast():
            seen = encoder(image, noise, self.objectives.image_mask_ratio)
            predicted = encoder.reconstruct(seen).float()
        assert seen.order is not None
        hidden = seen.order[:, seen.states.shape[1] - 1 :].unsqueeze(-1).expand(-1, -1, patch * patch * 3)
        patches = patchify(image, patch)
        masked = unpatchify(patches.scatter(1, hidden, _GREY), patch)
        restored = unpatchify(patches.scatter(1, hidden, predicted), patch)
        columns = [pixels, denormalise(masked), denormalise(restored)]
        side, gap, head = pixels.shape[-1], 4, 14
        sheet = Image.new("RGB", (3 * side + 2 * gap, head + len(rows) * (side + gap)), "white")
        draw = ImageDraw.Draw(sheet)
        for column, (title, content) in enumerate(zip(("original", "masked", "predicted"), columns, strict=True)):
            draw.text((column * (side + gap) + 2, 0), title, fill="black")
            for row in range(len(rows)):
                sheet.paste(_picture(content[row]), (column * (side + gap), head + row * (side + gap)))
        return sheet


def _picture(pixels: Tensor) -> Image.Image:
    """[3, H, W] uint8 as an image."""
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))
