"""The text stacks: one BERT whose upper layers also read the image, and the answer decoder. Official parameter names.

Shapes: B texts, L tokens, D wide, H heads, N tokens of what is attended to (image, question).
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from m2i2.config import TextConfig
from m2i2.models.ops import Linear, attention, linear

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, [B, H, N, d] each."""


def padding_mask(mask: Tensor) -> Tensor | None:
    """[B, L] ones and zeros -> a boolean mask [B, 1, 1, L] for attention."""
    return mask.bool()[:, None, None, :]


class SelfAttention(nn.Module):
    """Queries of one sequence against keys and values of the same or another, ``seen_width`` wide."""

    def __init__(self, config: TextConfig, seen_width: int) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.query = Linear(config.width, config.width)
        self.key = Linear(seen_width, config.width)
        self.value = Linear(seen_width, config.width)

    def keys_values(self, states: Tensor) -> KeysValues:
        """[B, N, seen_width] -> keys and values [B, H, N, d]."""
        return self._split(self.key(states)), self._split(self.value(states))

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Tensor | None) -> Tensor:
        """[B, L, D] -> [B, L, D]; ``mask`` is boolean, True where a key may be seen."""
        keys, values = keys_values
        dropout = self.dropout if self.training else 0.0
        return attention(self._split(self.query(x)), keys, values, mask, dropout).transpose(1, 2).flatten(2)

    def probabilities(self, x: Tensor, keys: Tensor) -> Tensor:
        """[B, L, D], [B, H, N, d] -> what `forward` weighs the values with, [B, H, L, N], without mask and dropout."""
        query = self._split(self.query(x))
        return (query @ keys.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ResidualOutput(nn.Module):
    """Projection (of GELU where asked), dropout, and a norm over the sum with what came in (post-norm)."""

    def __init__(self, width_in: int, config: TextConfig, *, gelu: bool = False) -> None:
        super().__init__()
        self.gelu = gelu
        self.dense = Linear(width_in, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = config.dropout

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """[B, L, width_in], [B, L, D] -> [B, L, D]."""
        x = self.dense(x, self.gelu)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return self.LayerNorm(x + residual)


class AttentionLayer(nn.Module):
    """Attention onto states that are ``seen_width`` wide, with its output projection."""

    def __init__(self, config: TextConfig, seen_width: int) -> None:
        super().__init__()
        self.self: SelfAttention = SelfAttention(config, seen_width)
        self.output = ResidualOutput(config.width, config)

    def forward(self, x: Tensor, keys_values: KeysValues | None, mask: Tensor | None) -> Tensor:
        """``keys_values`` None means those of ``x`` itself."""
        return self.output(self.self(x, keys_values or self.self.keys_values(x), mask), x)


class Intermediate(nn.Module):
    """First half of the feed-forward network, before its GELU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.intermediate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, intermediate]."""
        return self.dense(x)


class Layer(nn.Module):
    """A BERT layer, with cross-attention where it also reads something else, ``cross_width`` wide."""

    def __init__(self, config: TextConfig, cross_width: int | None) -> None:
        super().__init__()
        self.attention = AttentionLayer(config, config.width)
        if cross_width is not None:
            self.crossattention = AttentionLayer(config, cross_width)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate, config, gelu=True)

    def feed_forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return self.output(self.intermediate(x), x)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A layer of text alone."""
        return self.feed_forward(self.attention(x, None, mask))


class Stack(nn.Module):
    """The layers, under the name that BERT gives them; those from ``first_cross`` on also read states ``cross_width`` wide."""

    def __init__(self, config: TextConfig, depth: int, first_cross: int, cross_width: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, cross_width if i >= first_cross else None) for i in range(depth))

    def layers(self, start: int = 0, end: int | None = None) -> list[Layer]:
        """The layers from ``start`` to before ``end``."""
        return cast(list[Layer], list(self.layer)[start:end])


class Embeddings(nn.Module):
    """Words, positions and the one token type in use, summed and normed."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary_size, config.width)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = config.dropout

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """[B, L] ids, and their positions [L] or [B, L] (default: from 0) -> [B, L, D]."""
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.word_embeddings(ids) + self.position_embeddings(positions) + self.token_type_embeddings.weight[0]
        x = self.LayerNorm(x)
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class ImageRows(NamedTuple):
    """Text rows that read the same images: ``repeats`` rows an image, their states [B * repeats, L, D] image by image."""

    keys_values: list[KeysValues]
    """For each multimodal layer, of B images."""
    repeats: int


class TextModel(nn.Module):
    """BERT: layers below ``fusion_layer`` encode text alone, the others fuse it with an image's states, ``image_width`` wide."""

    def __init__(self, config: TextConfig, image_width: int) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config, config.depth, config.fusion_layer, image_width)
        initialise_bert(self, config.initializer_range)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, L] -> states [B, L, D] of the text alone."""
        x, attention_mask = self.embeddings(ids), padding_mask(mask)
        for layer in self.encoder.layers(0, self.config.fusion_layer):
            x = self._call(layer, x, attention_mask)
        return x

    def image_keys_values(self, image_states: Tensor) -> list[KeysValues]:
        """The image's [B, N, image_width] keys and values for every multimodal layer, projected once for all texts that read it."""
        return [layer.crossattention.self.keys_values(image_states) for layer in self.encoder.layers(self.config.fusion_layer)]

    def fuse(self, x: Tensor, mask: Tensor, groups: list[ImageRows]) -> Tensor:
        """Text states [R, L, D] of all groups one after another -> multimodal states [R, L, D].

        In the cross-attention the rows of one image stand behind one another as queries of one sequence, so that keys
        and values are never copied; elsewhere rows are independent.
        """
        attention_mask = padding_mask(mask)
        for number, layer in enumerate(self.encoder.layers(self.config.fusion_layer)):
            x = self._call(self._fuse_layer, layer, x, attention_mask, [(g.keys_values[number], g.repeats) for g in groups])
        return x

    @staticmethod
    def _fuse_layer(layer: Layer, x: Tensor, mask: Tensor | None, groups: list[tuple[KeysValues, int]]) -> Tensor:
        x = layer.attention(x, None, mask)
        length = x.shape[1]
        crossed, start = [], 0
        for keys_values, repeats in groups:
            rows = len(keys_values[0]) * repeats
            together = x[start : start + rows].reshape(-1, repeats * length, x.shape[2])
            crossed.append(layer.crossattention(together, keys_values, None).reshape(rows, length, -1))
            start += rows
        return layer.feed_forward(torch.cat(crossed) if len(crossed) > 1 else crossed[0])

    def _call(self, function: object, *arguments: object) -> Tensor:
        assert callable(function)
        if self.checkpoint_activations and self.training:
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)


class Transform(nn.Module):
    """Dense, GELU, norm: the first half of BERT's vocabulary head."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    """Scores over the vocabulary; the matrix is the word embeddings' own (tied)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary_size))


class VocabularyHead(nn.Module):
    """BERT's ``cls``."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """States [..., D] of the positions that are asked for -> logits [..., V]."""
        return linear(self.predictions.transform(states), word_embeddings, self.predictions.bias)


class MaskedLanguageModel(nn.Module):
    """The text model with its vocabulary head (the official ``text_encoder`` of pretraining)."""

    def __init__(self, config: TextConfig, image_width: int) -> None:
        super().__init__()
        self.bert = TextModel(config, image_width)
        self.cls = VocabularyHead(config)
        initialise_bert(self.cls, config.initializer_range)

    def logits(self, states: Tensor) -> Tensor:
        """States [M, D] -> logits [M, V]."""
        return self.cls(states, self.bert.embeddings.word_embeddings.weight)


class DecoderCache:
    """Keys and values of what an answer decoder has read so far.

    ``cross``: of the question states, [Q, H, N, d], projected once. ``past``: of the answers' own tokens, [R, H, t, d],
    where R is a multiple of Q: R / Q answers in a row belong to one question.
    """

    def __init__(self, cross: list[KeysValues], cross_mask: Tensor) -> None:
        self.cross, self.cross_mask = cross, cross_mask
        self.past: list[KeysValues | None] = [None] * len(cross)

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return 0 if self.past[0] is None else self.past[0][0].shape[2]

    def reorder(self, rows: Tensor) -> None:
        """Keep the answers ``rows`` [R'], in that order (beam search); they stay grouped by question."""
        self.past = [None if kv is None else (kv[0][rows], kv[1][rows]) for kv in self.past]


class DecoderStack(nn.Module):
    """The answer decoder without its head (``text_decoder.bert``)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config, config.decoder_depth, 0, config.width)


class AnswerDecoder(nn.Module):
    """Causal BERT layers that read the multimodal states of a question (the official ``text_decoder``)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.bert = DecoderStack(config)
        self.cls = VocabularyHead(config)
        initialise_bert(self, config.initializer_range)

    def start(self, states: Tensor, states_mask: Tensor) -> DecoderCache:
        """A cache for questions with states [Q, N, D] and mask [Q, N]."""
        cross = [layer.crossattention.self.keys_values(states) for layer in self.bert.encoder.layers()]
        return DecoderCache(cross, states_mask.bool()[:, None, None, :])

    def read(self, ids: Tensor, cache: DecoderCache, visible: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Read tokens [R, t] after what the cache holds -> their states [R, t, D]; the cache then holds them too.

        ``visible``: boolean [t, past + t] or [R, 1, t, past + t], which earlier tokens each one sees (default: all before it
        and itself). ``positions``: [t] or [R, t], places of the tokens in their answers (default: counted on).
        """
        past, new = cache.length, ids.shape[1]
        if positions is None:
            positions = torch.arange(past, past + new, device=ids.device)
        if visible is None:
            visible = torch.ones(new, past + new, dtype=torch.bool, device=ids.device).tril(past)
        x = self.bert.embeddings(ids, positions)
        for number, layer in enumerate(self.bert.encoder.layers()):
            keys, values = layer.attention.self.keys_values(x)
            before = cache.past[number]
            if before is not None:
                keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
            cache.past[number] = (keys, values)
            x = layer.attention(x, (keys, values), visible)
            cross = cache.cross[number]
            together = x.reshape(len(cross[0]), -1, x.shape[2])
            x = layer.crossattention(together, cross, cache.cross_mask).reshape(x.shape)
            x = layer.feed_forward(x)
        return x

    def logits(self, states: Tensor) -> Tensor:
        """States [..., D] -> logits [..., V]."""
        return self.cls(states, self.bert.embeddings.word_embeddings.weight)

    def forward(self, ids: Tensor, states: Tensor, states_mask: Tensor) -> Tensor:
        """Answers [Q, t], one for each question -> states [Q, t, D]. Padding behind an answer is never seen by it."""
        return self.read(ids, self.start(states, states_mask))


def initialise_bert(module: nn.Module, deviation: float) -> None:
    """BERT's: every projection and embedding in ``module`` normal, biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=deviation)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
