"""The states of a pretraining micro-batch: one masked pass over the image, one over the text and one over both serve all losses."""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from m2i2.config import ObjectivesConfig
from m2i2.data.loading.batch import CaptionBatch
from m2i2.distributed import RowExchange, mean_over_ranks, world_size
from m2i2.models.pretraining import PretrainingModel
from m2i2.models.text import ImageRows, KeysValues
from m2i2.models.vision import MaskedImage, patchify, take
from m2i2.objectives.itc import itc_loss
from m2i2.objectives.itm import rows_present
from m2i2.objectives.states import Contrast, Matching, Pixels, States, Words
from m2i2.tasks.negatives import GlobalBatch, Negatives
from m2i2.tasks.teacher import TeacherTargets


class _Fused(NamedTuple):
    """Multimodal states [b, L, D] of the same captions in different company; None where no objective reads them."""

    pair: Tensor | None
    with_negative_image: Tensor | None
    with_negative_text: Tensor | None
    masked: Tensor | None


class Encoded(NamedTuple):
    """What the student's encoders make of a micro-batch: each row by itself."""

    image: MaskedImage
    text: Tensor
    """[b, L, D] of the whole captions."""
    masked_text: Tensor | None
    """[b, L, D] of the captions with masked words; None where no objective reads them."""

    def tensors(self) -> list[Tensor]:
        """All states."""
        return [one for one in (self.image.states, self.text, self.masked_text) if one is not None]

    def leaves(self, chosen: slice) -> "Encoded":
        """Those of some rows, as leaves of a graph. They share the memory."""
        image, masked_text = self.image.rows(chosen), None if self.masked_text is None else leaf(self.masked_text[chosen])
        return Encoded(image._replace(states=leaf(image.states)), leaf(self.text[chosen]), masked_text)


def leaf(x: Tensor) -> Tensor:
    """``x`` as a leaf of a graph; it shares the memory."""
    return x.detach().requires_grad_()


def encode(student: PretrainingModel, batch: CaptionBatch, image_mask_ratio: float, with_words: bool) -> Encoded:
    """Encode a prepared batch; ``with_words``: the captions with masked words too, in the same pass."""
    image = student.visual_encoder(batch.image, batch.student_noise, image_mask_ratio)
    return Encoded(image, *encode_text(student, batch, with_words))


def encode_text(student: PretrainingModel, batch: CaptionBatch, with_words: bool) -> tuple[Tensor, Tensor | None]:
    """The texts' part of `Encoded`: [b, L, D] of the whole captions, and of those with masked words."""
    texts = [batch.input_ids, batch.masked_input_ids] if with_words else [batch.input_ids]
    text = student.text_encoder.bert.encode(torch.cat(texts), batch.attention_mask.repeat(len(texts), 1))
    return text[: len(batch)], text[len(batch) :] if with_words else None


class HardNegatives(NamedTuple):
    """The states of a hard negative image for each text, and of a hard negative text for each image."""

    image: Tensor
    """[b, N, D]"""
    text: Tensor
    """[b, L, D]"""
    text_mask: Tensor
    """[b, L]"""

    def leaves(self, chosen: slice) -> "HardNegatives":
        """Those of some rows, as leaves of a graph. They share the memory."""
        return HardNegatives(leaf(self.image[chosen]), leaf(self.text[chosen]), self.text_mask[chosen])


def fetch_negatives(
    global_batch: GlobalBatch, negatives: Negatives, image_states: Tensor, text_states: Tensor, mask: Tensor
) -> HardNegatives:
    """The states that ``negatives`` name, of what each rank holds: [b, N, D], [b, L, D], [b, L]. Collective, unless they are local.

    Gradients flow back to the owners of the rows.
    """
    if global_batch.local or world_size() == 1:
        its_image = image_states.index_select(0, negatives.image)
        return HardNegatives(its_image, text_states.index_select(0, negatives.text), mask.index_select(0, negatives.text))
    exchange = RowExchange((negatives.image, negatives.text), global_batch.rows_of_rank)
    image = exchange.fetch(0, image_states)
    texts = exchange.fetch(1, torch.cat([text_states, mask.unsqueeze(-1).to(text_states.dtype)], dim=-1))
    return HardNegatives(image, texts[..., :-1], texts[..., -1].long())


def excluded(global_batch: GlobalBatch, settings: ObjectivesConfig) -> Tensor | None:
    """[b, candidates + Q] bool, the pairs that are no negatives of each other; None where all are."""
    return global_batch.excluded(settings.similar_captions) if settings.false_negatives == "exclude" else None


class PretrainingStates(States):
    """What the student makes of a micro-batch, computed as the objectives ask for it. Collective: all ranks ask for the same."""

    def __init__(
        self,
        student: PretrainingModel,
        settings: ObjectivesConfig,
        batch: CaptionBatch,
        targets: TeacherTargets,
        global_batch: GlobalBatch,
        distillation: float | Tensor,
        draws: Tensor | Negatives,
        reads: frozenset[str],
    ) -> None:
        """``batch``: prepared (normalised pixels). ``draws``: where the counters of the hard negatives' draws begin, [2] int64, or
        which ones they are.

        ``reads``: which of ``matching`` and ``words`` some objective reads.
        """
        self.student, self.settings, self.batch, self.targets = student, settings, batch, targets
        self.global_batch, self.distillation, self._draws, self._reads = global_batch, distillation, draws, reads
        self._encoded = self._encode()
        self.image_states, self.text_states = self._encoded.image.states, self._encoded.text
        self.image_features = student.image_features(self.image_states)
        self.text_features = student.text_features(self.text_states)

    def _encode(self) -> Encoded:
        return encode(self.student, self.batch, self.settings.image_mask_ratio, "words" in self._reads)

    @cached_property
    def _excluded(self) -> Tensor | None:
        return excluded(self.global_batch, self.settings)

    @cached_property
    def contrast(self) -> Contrast:
        """The image-text contrast against the teacher's features of the global batch and the queue."""
        image, text, _, _ = self.global_batch.candidates()
        queue = self.global_batch.queue
        with torch.autocast(image.device.type, enabled=False):
            return itc_loss(
                self.image_features,
                self.text_features,
                (image, queue.image),
                (text, queue.text),
                self.global_batch.own(),
                self.student.temp,
                self.distillation,
                self._excluded,
            )

    @cached_property
    def pixels(self) -> Pixels:
        """The masked patches, reconstructed from the visible ones."""
        target = take(patchify(self.batch.image, self.student.vision.patch_size), self._encoded.image.hidden)
        return Pixels(self.student.visual_encoder.reconstruct(self._encoded.image), target)

    @cached_property
    def negatives(self) -> Negatives:
        """The hard negatives of the rank's rows."""
        if isinstance(self._draws, Negatives):
            return self._draws
        count = len(self.global_batch.candidates()[0])
        none_of = None if self._excluded is None else self._excluded[:, :count]
        contrast = self.contrast
        similarity = contrast.text_to_image[:, :count], contrast.image_to_text[:, :count]
        return self.global_batch.draw(*similarity, none_of, self._draws, self.settings.hardness)

    @cached_property
    def matching(self) -> Matching:
        """The matching head's output: true pairs, negative images for texts, negative texts for images."""
        fused = self._fused
        if fused.pair is None or fused.with_negative_image is None or fused.with_negative_text is None:
            raise _not_read("matching")
        first_tokens = torch.cat([fused.pair[:, 0], fused.with_negative_image[:, 0], fused.with_negative_text[:, 0]])
        logits = self.student.itm_head(first_tokens)
        return Matching(logits, self.negatives.image_there, self.negatives.text_there, self._mean_counts[0])

    @cached_property
    def words(self) -> Words:
        """The vocabulary head's output, at the masked words alone."""
        if self._fused.masked is None:
            raise _not_read("words")
        logits = self.student.text_encoder.logits(self._fused.masked.flatten(0, 1).index_select(0, self.batch.places))
        return Words(logits, self._labels, self.targets.mlm_logits, self._mean_counts[1])

    @cached_property
    def _labels(self) -> Tensor:
        """[M] the masked words, -100 where nothing is asked."""
        return self.batch.labels.flatten().index_select(0, self.batch.places)

    @cached_property
    def _mean_counts(self) -> Tensor:
        """[2] rows of the matching, and masked words, of a rank: the means over the ranks."""
        words = (self._labels != -100).sum().to(self.image_features.dtype)
        rows = words.new_zeros(())
        if "matching" in self._reads:
            rows = rows_present(self.negatives.image_there, self.negatives.text_there).sum().to(words.dtype)
        return mean_over_ranks(torch.stack([rows, words]))

    @cached_property
    def _fused(self) -> _Fused:
        """One pass of the multimodal encoder over all that is read.

        True pairs, negative texts and masked texts stand at their own image, whose keys and values are projected once; texts at
        their negative images follow.
        """
        bert, mask, rows = self.student.text_encoder.bert, self.batch.attention_mask, len(self.batch)
        keys_values = bert.image_keys_values(self.image_states)
        at_image: list[tuple[Tensor, Tensor]] = []
        groups: list[ImageRows] = []
        matching, masked_text = "matching" in self._reads, self._encoded.masked_text
        if matching:
            negative_keys_values, negative_text, negative_mask = self._negative_states(keys_values)
            at_image += [(self.text_states, mask), (negative_text, negative_mask)]
            groups.append(ImageRows(negative_keys_values, 1))
        if masked_text is not None:
            at_image.append((masked_text, mask))
        repeats = len(at_image)
        if not repeats:
            return _Fused(None, None, None, None)
        states = torch.stack([text for text, _ in at_image], dim=1).flatten(0, 1)
        states_mask = torch.stack([its_mask for _, its_mask in at_image], dim=1).flatten(0, 1)
        if matching:
            states, states_mask = torch.cat([states, self.text_states]), torch.cat([states_mask, mask])
        fused = bert.fuse(states, states_mask, [ImageRows(keys_values, repeats), *groups])
        at_image_fused = fused[: rows * repeats].unflatten(0, (rows, repeats))
        return _Fused(
            at_image_fused[:, 0] if matching else None,
            fused[rows * repeats :] if matching else None,
            at_image_fused[:, 1] if matching else None,
            at_image_fused[:, -1] if masked_text is not None else None,
        )

    def _negative_states(self, keys_values: list[KeysValues]) -> tuple[list[KeysValues], Tensor, Tensor]:
        """Keys and values of the negative images, states and mask of the negative texts; ``keys_values``: of the own images."""
        image, text, mask = self.negatives.image, self.negatives.text, self.batch.attention_mask
        if self.global_batch.local or world_size() == 1:  # the own images' projected keys and values serve again
            return [(k[image], v[image]) for k, v in keys_values], self.text_states[text], mask[text]
        fetched = fetch_negatives(self.global_batch, self.negatives, self.image_states, self.text_states, mask)
        return self.student.text_encoder.bert.image_keys_values(fetched.image), fetched.text, fetched.text_mask

    def features(self) -> dict[str, Tensor]:
        """What came out beside the losses, detached."""
        found = {"image_features": self.image_features.detach(), "text_features": self.text_features.detach()}
        if "matching" in self._reads:
            found["itm_logits"] = self.matching.logits.detach()
        return found


def _not_read(what: str) -> LookupError:
    return LookupError(f'An objective that reads states.{what} says so where it is registered: @objective(..., reads=["{what}"]).')
