"""The pretraining networks: both encoders with their projections, and the student with its heads."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2i2.config import ObjectivesConfig, TextConfig, VisionConfig
from m2i2.models.text import MaskedLanguageModel, initialise_bert
from m2i2.models.vision import VisionTransformer
from m2i2.precision import full

HIGHEST_TEMPERATURE = 0.5
"""Of the contrast; learnable (official code)."""


class Encoders(nn.Module):
    """What student and teacher have in common: both encoders and their projections."""

    def __init__(self, vision: VisionConfig, text: TextConfig, objectives: ObjectivesConfig, *, with_decoder: bool) -> None:
        super().__init__()
        self.vision, self.text, self.objectives = vision, text, objectives
        self.visual_encoder = VisionTransformer(vision, with_decoder=with_decoder)
        self.text_encoder = MaskedLanguageModel(text, vision.width)
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


class PretrainingModel(Encoders):
    """Image encoder with pixel decoder, text and multimodal encoder, the matching head and the contrast's temperature."""

    def __init__(self, vision: VisionConfig, text: TextConfig, objectives: ObjectivesConfig) -> None:
        super().__init__(vision, text, objectives, with_decoder=True)
        self.itm_head = nn.Linear(text.width, 2)
        initialise_bert(self.itm_head, text.initializer_range)
        self.temp = nn.Parameter(torch.full((1,), objectives.temperature))

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring the temperature back into its bounds."""
        self.temp.clamp_(self.objectives.lowest_temperature, HIGHEST_TEMPERATURE)
