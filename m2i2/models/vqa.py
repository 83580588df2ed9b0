"""The answering model: image and question fused by the multimodal encoder, the answer written by a causal decoder."""

from torch import Tensor, nn

from m2i2.config import TextConfig, VisionConfig
from m2i2.models.text import AnswerDecoder, ImageRows, KeysValues, TextModel
from m2i2.models.vision import VisionTransformer


class VQAModel(nn.Module):
    """Image encoder, question encoder and answer decoder, under the official VQA checkpoint's parameter names."""

    def __init__(self, vision: VisionConfig, text: TextConfig) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.visual_encoder = VisionTransformer(vision, with_decoder=False)
        self.text_encoder = TextModel(text, vision.width)
        self.text_decoder = AnswerDecoder(text)

    def encode_image(self, image: Tensor) -> list[KeysValues]:
        """[B, 3, H, W] normalised -> each image's keys and values for the multimodal layers."""
        return self.text_encoder.image_keys_values(self.visual_encoder(image).states)

    def encode_question(self, ids: Tensor, mask: Tensor, keys_values: list[KeysValues], image_of: Tensor | None = None) -> Tensor:
        """Questions [B, L] about images -> multimodal states [B, L, D].

        ``image_of``: [B], which of the images each question is about; default: question i is about image i.
        """
        if image_of is not None:
            keys_values = [(k[image_of], v[image_of]) for k, v in keys_values]
        text = self.text_encoder.encode(ids, mask)
        return self.text_encoder.fuse(text, mask, [ImageRows(keys_values, 1)])

    def answer_logits(self, image: Tensor, question_ids: Tensor, question_mask: Tensor, answer_ids: Tensor) -> Tensor:
        """Logits [B, A - 1, V]: what follows each token of each answer [B, A] but the last."""
        states = self.encode_question(question_ids, question_mask, self.encode_image(image))
        return self.text_decoder.logits(self.text_decoder(answer_ids[:, :-1], states, question_mask))
