"""The pretraining student: one masked pass over the image and one over the text serve all four objectives."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2i2.config import ObjectivesConfig, TextConfig, VisionConfig
from m2i2.data.loading.batch import CaptionBatch
from m2i2.distributed import all_gather, exchange_rows, rank, world_size
from m2i2.models.text import ImageRows, MaskedLanguageModel, initialise_bert
from m2i2.models.vision import VisionTransformer, patchify, take
from m2i2.objectives import full
from m2i2.objectives.itc import itc_loss
from m2i2.objectives.itm import draw_negatives, itm_loss
from m2i2.objectives.mim import mim_loss
from m2i2.objectives.mlm import mlm_loss
from m2i2.tasks.queue import FeatureQueue


class TeacherTargets(NamedTuple):
    """What the momentum teacher says of a rank's micro-batch."""

    image_features: Tensor
    """[b, projection], L2-normalised."""
    text_features: Tensor
    mlm_logits: Tensor
    """[M, V] at the masked positions, in the order of `masked_positions`."""


class Encoders(nn.Module):
    """What student and teacher have in common: both encoders and their projections."""

    def __init__(self, vision: VisionConfig, text: TextConfig, objectives: ObjectivesConfig, *, with_decoder: bool) -> None:
        super().__init__()
        self.vision, self.text, self.objectives = vision, text, objectives
        self.visual_encoder = VisionTransformer(vision, with_decoder=with_decoder)
        self.text_encoder = MaskedLanguageModel(text)
        self.vision_proj = nn.Linear(vision.width, objectives.projection)
        self.text_proj = nn.Linear(text.width, objectives.projection)
        initialise_bert(self.vision_proj, text.initializer_range)
        initialise_bert(self.text_proj, text.initializer_range)

    def image_features(self, image_states: Tensor) -> Tensor:
        """States [b, N, D] -> the [CLS] projected and normalised [b, projection]."""
        return F.normalize(full(self.vision_proj(image_states[:, 0])), dim=-1)

    def text_features(self, text_states: Tensor) -> Tensor:
        """States [b, L, D] -> the [CLS] projected and normalised [b, projection]."""
        return F.normalize(full(self.text_proj(text_states[:, 0])), dim=-1)


def masked_positions(labels: Tensor) -> Tensor:
    """[b, L] labels -> [M] numbers of the masked positions in the flattened batch."""
    return (labels.flatten() != -100).nonzero().squeeze(1)


class PretrainingModel(Encoders):
    """Image encoder with pixel decoder, text and multimodal encoder, and the heads of the four objectives."""

    def __init__(self, vision: VisionConfig, text: TextConfig, objectives: ObjectivesConfig) -> None:
        super().__init__(vision, text, objectives, with_decoder=True)
        self.itm_head = nn.Linear(text.width, 2)
        initialise_bert(self.itm_head, text.initializer_range)
        self.temp = nn.Parameter(torch.full((1,), objectives.temperature))

    def forward(
        self,
        batch: CaptionBatch,
        targets: TeacherTargets,
        queue: FeatureQueue,
        noise: tuple[Tensor, Tensor],
        distillation: float,
    ) -> dict[str, Tensor]:
        """The losses ``mim``, ``mlm``, ``itm``, ``itc`` of a rank's micro-batch, unweighted.

        ``batch.image``: normalised float. ``noise``: Gumbel noise [b, B] of the draws of negative images for texts and
        of negative texts for images, over the global batch of B = b * ranks. Ranks' losses average to those of the
        concatenated batch. Further entries: ``unused`` is 0 and ties in every parameter that no objective used, so that
        all ranks differentiate the same ones; ``itm_logits`` and the features are detached, for tests.
        """
        with torch.no_grad():
            self.temp.clamp_(0.001, 0.5)
        weights, rows = self.objectives, len(batch)
        seen = self.visual_encoder(batch.image, batch.student_noise, weights.image_mask_ratio)
        with_mlm = weights.mlm > 0
        ids = torch.cat([batch.input_ids, batch.masked_input_ids]) if with_mlm else batch.input_ids
        mask = batch.attention_mask
        text = self.text_encoder.bert.encode(ids, torch.cat([mask, mask]) if with_mlm else mask)
        text_states, masked_states = text[:rows], text[rows:]
        image_features, text_features = self.image_features(seen.states), self.text_features(text_states)
        losses = {"image_features": image_features.detach(), "text_features": text_features.detach()}

        # --- image-text contrast, against the teacher's features of the global batch and the queue
        everywhere = weights.negatives == "global"
        gather = all_gather if everywhere else _keep
        image_ids, text_ids = gather(batch.image_id), gather(batch.caption_id)
        first = rank() * rows if everywhere else 0
        own = torch.arange(first, first + rows, device=ids.device)
        same = None
        if weights.false_negatives == "exclude":
            same = _same(batch.image_id, torch.cat([image_ids, queue.image_ids]))
            same |= _same(batch.caption_id, torch.cat([text_ids, queue.text_ids]))
            same[torch.arange(rows, device=ids.device), own] = False
        with torch.autocast(ids.device.type, enabled=False):
            contrast = itc_loss(
                image_features,
                text_features,
                (gather(targets.image_features), queue.image),
                (gather(targets.text_features), queue.text),
                own,
                self.temp,
                distillation,
                same,
            )
        if weights.itc:
            losses["itc"] = contrast.loss

        # --- masked image modelling, from the same latent
        if weights.mim:
            hidden = seen.order[:, seen.states.shape[1] - 1 :]
            pixels = take(patchify(batch.image, self.vision.patch_size), hidden)
            losses["mim"] = mim_loss(self.visual_encoder.reconstruct(seen), pixels)

        # --- multimodal rows: true pairs, negative texts and masked texts at each image; texts at their negative images
        if weights.itm or with_mlm:
            bert = self.text_encoder.bert
            keys_values = bert.image_keys_values(seen.states)
            at_image, at_image_mask = [masked_states] * with_mlm, [mask] * with_mlm
            groups = []
            if weights.itm:
                forbidden = torch.zeros((rows, len(image_ids)), dtype=torch.bool, device=ids.device)
                forbidden[torch.arange(rows, device=ids.device), own] = True
                if same is not None:
                    forbidden |= same[:, : len(image_ids)]
                columns = slice(0, len(image_ids)) if everywhere else slice(rank() * rows, (rank() + 1) * rows)
                image_negative, image_there = draw_negatives(
                    contrast.text_to_image[:, : len(image_ids)], forbidden, noise[0][:, columns]
                )
                text_negative, text_there = draw_negatives(
                    contrast.image_to_text[:, : len(image_ids)], forbidden, noise[1][:, columns]
                )
                if everywhere and world_size() > 1:
                    negative_keys_values = bert.image_keys_values(exchange_rows(seen.states, image_negative))
                    negative_text = exchange_rows(text_states, text_negative)
                    negative_mask = exchange_rows(mask, text_negative)
                else:
                    negative_keys_values = [(k[image_negative], v[image_negative]) for k, v in keys_values]
                    negative_text, negative_mask = text_states[text_negative], mask[text_negative]
                at_image, at_image_mask = [text_states, negative_text, *at_image], [mask, negative_mask, *at_image_mask]
                groups.append(ImageRows(negative_keys_values, 1))
            repeats = len(at_image)
            states = torch.stack(at_image, dim=1).flatten(0, 1)
            states_mask = torch.stack(at_image_mask, dim=1).flatten(0, 1)
            if weights.itm:
                states, states_mask = torch.cat([states, text_states]), torch.cat([states_mask, mask])
            fused = bert.fuse(states, states_mask, [ImageRows(keys_values, repeats), *groups])
            at_image_fused = fused[: rows * repeats].unflatten(0, (rows, repeats))
            if weights.itm:
                first_tokens = torch.cat([at_image_fused[:, 0, 0], fused[rows * repeats :, 0], at_image_fused[:, 1, 0]])
                logits = self.itm_head(first_tokens)
                losses["itm"] = itm_loss(logits, rows, image_there, text_there)
                losses["itm_logits"] = logits.detach()
            if with_mlm:
                places = masked_positions(batch.labels)
                chosen = at_image_fused[:, -1].flatten(0, 1).index_select(0, places)
                logits = self.text_encoder.logits(chosen)
                labels = batch.labels.flatten().index_select(0, places)
                losses["mlm"] = mlm_loss(logits, labels, targets.mlm_logits, distillation)

        losses["unused"] = self._unused(image_features)
        return losses

    def _unused(self, like: Tensor) -> Tensor:
        """Zero, with every parameter of the objectives that are left out in its graph."""
        weights, text = self.objectives, self.text_encoder
        modules: list[nn.Module] = []
        if not weights.mim:
            vision = self.visual_encoder
            modules += [vision.decoder_embed, vision.decoder_blocks, vision.decoder_norm, vision.decoder_pred]
        if not weights.mlm:
            modules.append(text.cls)
        if not weights.itm:
            modules.append(self.itm_head)
        if not weights.itm and not weights.mlm:
            modules.append(text.bert.encoder.layer[self.text.fusion_layer :])
        parameters = [p for module in modules for p in module.parameters()]
        if not weights.mim:
            parameters.append(self.visual_encoder.mask_token)
        if not weights.itc:
            parameters += [self.temp, *self.vision_proj.parameters(), *self.text_proj.parameters()]
        return sum((0 * p.sum() for p in parameters if p.requires_grad), like.new_zeros(()))


def _keep(x: Tensor) -> Tensor:
    return x


def _same(mine: Tensor, all_ids: Tensor) -> Tensor:
    """[b], [B] identities -> [b, B] where they are equal; the queue's -1 (empty) equals none."""
    return mine.unsqueeze(1) == all_ids.unsqueeze(0)
