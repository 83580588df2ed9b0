"""Image-text retrieval among held-out pairs, by contrastive features."""

import json
from pathlib import Path

import torch
from torch import Tensor

from m2i2.distributed import all_gather
from m2i2.files import replacing, write_text
from m2i2.precision import autocast
from m2i2.tasks.pretraining import PretrainingTask
from m2i2.training.evaluators import Evaluator, Measured, undisturbed
from m2i2.training.held_out import HeldOutPairs
from m2i2.training.validation import FOLDER, picture

PLACES = (1, 5, 10)
_SHOWN = 3
"""Captions that an example lists."""


class Retrieval(Evaluator):
    """Which captions are nearest to an image, and which images to a caption. Images are seen whole."""

    def __init__(self, task: PretrainingTask, pairs: HeldOutPairs, run: Path) -> None:
        """``run`` is the run's folder."""
        self.task, self.pairs, self.folder = task, pairs, run / FOLDER
        self.every, self.examples = task.config.validation.every, task.config.validation.pictures

    def measure(self, step: int) -> Measured:
        """Recalls of all pairs; on rank 0, examples in the folder ``validation`` of the run."""
        images, texts, identities, ids = [], [], [], []
        with undisturbed(self.task.student, self.pairs.process.device):
            for stored in self.pairs:
                batch = self.task.prepared(stored)
                student = self.task.student
                with autocast(batch.image.device, self.task.dtype):
                    image = student.image_features(student.visual_encoder(batch.image).states)
                    text = student.text_features(student.text_encoder.bert.encode(batch.input_ids, batch.attention_mask))
                images.append(all_gather(image.float()))
                texts.append(all_gather(text.float()))
                identities.append(torch.stack([all_gather(batch.image_id), all_gather(batch.caption_id)]))
                ids += all_gather(batch.input_ids).tolist()
        similarity = torch.cat(images) @ torch.cat(texts).T
        image_id, caption_id = torch.cat(identities, dim=1)
        right = (image_id[:, None] == image_id) | (caption_id[:, None] == caption_id)
        if self.pairs.process.first and self.examples:
            self._write_examples(step, similarity, right, ids)
        return Measured({**recalls(similarity, right), "pairs": float(self.pairs.pairs)})

    def _write_examples(self, step: int, similarity: Tensor, right: Tensor, ids: list[list[int]]) -> None:
        """The captions that are nearest to some images, as JSON beside the images."""
        self.folder.mkdir(exist_ok=True)
        examples, decode = [], self.pairs.tokenizer.decode
        for number, row in self.pairs.first_rows(self.examples):
            query, batch = number * self.pairs.share.batch + row, self.pairs.stored()[number]
            name = f"image-{int(batch.item[row])}.png"
            if not (self.folder / name).exists():
                with replacing(self.folder / name) as file:
                    picture(batch.image[row]).save(file, "PNG")
            nearest = similarity[query].topk(min(_SHOWN, self.pairs.pairs))
            found = [
                {"caption": decode(ids[i]), "similarity": round(s, 4), "right": bool(right[query, i])}
                for i, s in zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
            ]
            examples.append({"image": name, "caption": decode(ids[query]), "found": found})
        content = {"step": step, "pairs": self.pairs.pairs, "image_to_text": examples}
        write_text(self.folder / f"retrieval-{step:08d}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def recalls(similarity: Tensor, right: Tensor) -> dict[str, float]:
    """Recall@1, 5 and 10 in percent, both ways, as ``image_to_text_r1`` ... ``text_to_image_r10``.

    ``similarity``: [N, N], images by texts. ``right``: [N, N] bool, which text belongs to which image; at least the
    diagonal. A query counts at k where one of its right answers is among the k best. Equal similarities count against it,
    so that features that are all the same find nothing.
    """
    found: dict[str, float] = {}
    for name, scores, truth in (("image_to_text", similarity, right), ("text_to_image", similarity.T, right.T)):
        place = places(scores, truth)
        for k in PLACES:
            found[f"{name}_r{k}"] = 100 * float((place < k).float().mean())
    return found


def places(scores: Tensor, right: Tensor) -> Tensor:
    """[N] the place, from 0, of the best right answer (``right`` [N, M] bool) in each row's order by ``scores`` [N, M].

    A wrong answer with the same score stands before it.
    """
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((scores >= best) & ~right).sum(dim=1)
