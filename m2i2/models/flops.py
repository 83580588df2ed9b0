"""Floating-point operations that the mathematics needs, counted from the settings: useful work, whatever the code does.

A multiplication and an addition are two operations; only matrix products and attention count. The backward pass needs two
products for every one of the forward pass, but for the patch embedding, whose input has no gradient, and for the contrast,
whose keys have none.
"""

from m2i2.config import FinetuningConfig, ObjectivesConfig, PretrainingConfig, TextConfig, VisionConfig

_BACKWARD_TOO = 3
"""Forward and backward, in forward passes."""


def _layer(rows: float, width: int, hidden: int, keys: float) -> float:
    """A transformer layer over ``rows`` tokens that each see ``keys`` tokens."""
    return 2 * rows * (4 * width**2 + 2 * width * hidden + 2 * keys * width)


def patch_embedding(vision: VisionConfig, patches: int) -> float:
    """The projection of ``patches`` patches."""
    return 2 * patches * 3 * vision.patch_size**2 * vision.width


def image_layers(vision: VisionConfig, patches: int) -> float:
    """The image encoder's layers on [CLS] and ``patches`` patches."""
    tokens = patches + 1
    return vision.depth * _layer(tokens, vision.width, 4 * vision.width, tokens)


def pixel_decoder(vision: VisionConfig, patches: int) -> float:
    """The pixel decoder, whose encoder saw ``patches`` patches."""
    tokens, width = vision.patches + 1, vision.decoder_width
    layers = vision.decoder_depth * _layer(tokens, width, 4 * width, tokens)
    pixels = (vision.patches - patches) * 3 * vision.patch_size**2
    return layers + 2 * width * ((patches + 1) * vision.width + pixels)


def text_layers(text: TextConfig, tokens: float) -> float:
    """The text encoder on one text."""
    return text.fusion_layer * _layer(tokens, text.width, text.intermediate, tokens)


def image_keys_values(text: TextConfig, vision: VisionConfig, patches: int) -> float:
    """The projections of an image's states for the cross-attention of all multimodal layers."""
    return (text.depth - text.fusion_layer) * 2 * (patches + 1) * 2 * vision.width * text.width


def _crossed(text: TextConfig, depth: int, tokens: float, seen: float) -> float:
    """Layers with cross-attention over one text of ``tokens`` onto ``seen`` tokens, whose keys and values are there."""
    cross = 2 * tokens * (2 * text.width**2 + 2 * seen * text.width)
    return depth * (_layer(tokens, text.width, text.intermediate, tokens) + cross)


def multimodal_layers(text: TextConfig, tokens: float, patches: int) -> float:
    """The multimodal encoder on one text and an image's keys and values."""
    return _crossed(text, text.depth - text.fusion_layer, tokens, patches + 1)


def vocabulary_head(text: TextConfig, tokens: float) -> float:
    """Transform and vocabulary scores at ``tokens`` positions."""
    return 2 * tokens * text.width * (text.width + text.vocabulary_size)


def visible_patches(vision: VisionConfig, objectives: ObjectivesConfig) -> int:
    """Patches that are not masked."""
    return int(vision.patches * (1 - objectives.image_mask_ratio))


def pretraining_flops(config: PretrainingConfig, tokens: float, batch: int, asked: float | None = None) -> dict[str, float]:
    """Operations of one image-caption pair in a step of all four objectives, by part, the backward pass included.

    ``tokens``: length of the captions; ``batch``: global, for the contrast. ``asked``: masked words of a caption, by default the
    share of its tokens but [CLS]. The preset ``paper`` comes to 262 GFLOP at 25 tokens
    (0.86 of them vocabulary and contrast).
    """
    vision, text, objectives = config.vision, config.text, config.objectives
    seen = visible_patches(vision, objectives)
    asked = objectives.text_mask_ratio * (tokens - 1) if asked is None else asked
    features = 2 * objectives.projection * (vision.width + text.width)
    contrast = 2 * 2 * (batch + objectives.queue) * objectives.projection
    student = {
        "image encoder": _BACKWARD_TOO * image_layers(vision, seen) + 2 * patch_embedding(vision, seen),
        "pixel decoder": _BACKWARD_TOO * pixel_decoder(vision, seen),
        "text encoder": _BACKWARD_TOO * 2 * text_layers(text, tokens),
        # true pair, negative text and masked text at the image; the text at its negative image
        "multimodal encoder": _BACKWARD_TOO
        * (4 * multimodal_layers(text, tokens, seen) + image_keys_values(text, vision, seen) + 2 * 3 * text.width * 2),
        "vocabulary": _BACKWARD_TOO * vocabulary_head(text, asked),
        "contrast": _BACKWARD_TOO * features + 2 * contrast,
    }
    teacher = (
        image_layers(vision, seen)
        + patch_embedding(vision, seen)
        + 2 * text_layers(text, tokens)
        + multimodal_layers(text, tokens, seen)
        + image_keys_values(text, vision, seen)
        + vocabulary_head(text, asked)
        + features
        + contrast
    )
    return {**student, "teacher": teacher}


def second_encoding_flops(config: PretrainingConfig, tokens: float) -> float:
    """What losses over the whole batch cost a pair besides, with accumulation: encoding it again (but for one micro-batch of the
    step), and its negative image's keys and values, which otherwise are those of another pair."""
    vision, text = config.vision, config.text
    seen = visible_patches(vision, config.objectives)
    encoders = image_layers(vision, seen) + patch_embedding(vision, seen) + 2 * text_layers(text, tokens)
    again = 1 - 1 / config.training.accumulation
    return again * encoders + _BACKWARD_TOO * image_keys_values(text, vision, seen)


def question_flops(vision: VisionConfig, text: TextConfig, question: float) -> float:
    """Encoding a question about an image whose keys and values are there."""
    return text_layers(text, question) + multimodal_layers(text, question, vision.patches)


def image_flops(vision: VisionConfig, text: TextConfig) -> float:
    """Encoding a whole image, up to its keys and values for the multimodal layers."""
    everything = vision.patches
    return patch_embedding(vision, everything) + image_layers(vision, everything) + image_keys_values(text, vision, everything)


def answer_flops(text: TextConfig, question: float, read: float, seen: float) -> float:
    """The answer decoder reading ``read`` tokens that see ``seen`` of their own, and the vocabulary scores of each."""
    own = _layer(read, text.width, text.intermediate, seen)
    cross = 2 * read * (2 * text.width**2 + 2 * question * text.width) + 2 * question * 2 * text.width**2
    return text.decoder_depth * (own + cross) + vocabulary_head(text, read)


def finetuning_flops(config: FinetuningConfig, question: float, answer: float) -> dict[str, float]:
    """Operations of one question in a finetuning step, by part, the backward pass included.

    ``question``, ``answer``: lengths in tokens; the answer's last token is not read.
    """
    vision, text = config.vision, config.text
    forward = {
        "image encoder": image_flops(vision, text),
        "question": question_flops(vision, text, question),
        "answer": answer_flops(text, question, answer - 1, answer - 1),
    }
    step = {name: _BACKWARD_TOO * value for name, value in forward.items()}
    step["image encoder"] -= patch_embedding(vision, vision.patches)
    return {**step, "teacher": sum(forward.values())} if config.answering.distillation else step


def ranking_flops(vision: VisionConfig, text: TextConfig, question: float, nodes: float) -> float:
    """Operations of ranking one question about one image, reading ``nodes`` prefixes."""
    return image_flops(vision, text) + question_flops(vision, text, question) + answer_flops(text, question, nodes, nodes)
