"""The answering model: image and question fused by the multimodal encoder, the answer written by a causal decoder."""

from torch import Tensor, nn
from torch.nn import functional as F

from m2i2.config import TextConfig, VisionConfig
from m2i2.data.loading.batch import QuestionBatch
from m2i2.models.text import AnswerDecoder, ImageRows, KeysValues, TextModel
from m2i2.models.vision import VisionTransformer
from m2i2.objectives import full


class VQAModel(nn.Module):
    """Image encoder, question encoder and answer decoder, under the official VQA checkpoint's parameter names."""

    def __init__(self, vision: VisionConfig, text: TextConfig) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.visual_encoder = VisionTransformer(vision, with_decoder=False)
        self.text_encoder = TextModel(text)
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

    def answer_logits(self, batch: QuestionBatch) -> Tensor:
        """Logits [B, A - 1, V]: what follows each token of each answer but the last."""
        states = self.encode_question(batch.question_ids, batch.question_mask, self.encode_image(batch.image))
        decoded = self.text_decoder(batch.answer_ids[:, :-1], states, batch.question_mask)
        return self.text_decoder.logits(decoded)

    def forward(self, batch: QuestionBatch, distillation: float, teacher_logits: Tensor | None, answer_weight: float) -> Tensor:
        """The mean over the questions of ``answer_weight`` times the summed token loss of the answer.

        The loss of a token is (1 - a) * CE + a * soft CE against ``teacher_logits`` [B, A - 1, V], a = ``distillation``
        (official code; the paper's momentum distillation).
        """
        log_probabilities = F.log_softmax(full(self.answer_logits(batch)), dim=-1)
        labels, asked = batch.answer_ids[:, 1:], batch.answer_mask[:, 1:].to(log_probabilities.dtype)
        loss = -log_probabilities.gather(2, labels.unsqueeze(2)).squeeze(2)
        if teacher_logits is not None and distillation:
            soft = F.softmax(full(teacher_logits), dim=-1)
            loss = (1 - distillation) * loss - distillation * (log_probabilities * soft).sum(-1)
        return answer_weight * (loss * asked).sum(1).mean()
