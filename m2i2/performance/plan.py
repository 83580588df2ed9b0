"""A pretraining run on paper: memory a GPU, bytes on the wire, and the time of a step on any number of GPUs."""

from dataclasses import dataclass
from functools import cache

import torch

from m2i2.config import ObjectivesConfig, PretrainingConfig, TextConfig, VisionConfig
from m2i2.models.flops import pretraining_flops, second_encoding_flops, visible_patches
from m2i2.models.pretraining import Encoders, PretrainingModel

_FLOAT = 4


@dataclass(frozen=True)
class Machine:
    """What one GPU sustains, and its slowest link."""

    flops_per_s: float
    """Peak times MFU."""
    bytes_per_s: float
    """Sent at once over the slowest link."""
    latency_s: float = 20e-6


@dataclass(frozen=True)
class Plan:
    """One number of GPUs. Bytes are those of one GPU."""

    gpus: int
    memory: dict[str, float]
    """Bytes by kind."""
    host: dict[str, float]
    """Bytes of the CPU's memory, by kind, that offloading takes for one GPU, and saving in the background for the first one."""
    wire: dict[str, float]
    """Bytes sent by one GPU in an optimizer step."""
    compute_s: float
    network_s: float
    overlap: bool = False
    """Whether everything travels while the GPU computes, which is the best case; else one waits for the other."""

    @property
    def seconds(self) -> float:
        """A step. The default waits: gradients are reduced after the backward pass (overlap_comm is off)."""
        return max(self.compute_s, self.network_s) if self.overlap else self.compute_s + self.network_s

    @property
    def efficiency(self) -> float:
        """Share of the step that computes."""
        return self.compute_s / self.seconds


def parameters(config: PretrainingConfig) -> tuple[int, int]:
    """Parameters of the student that are trained, and all of the teacher's; nothing is allocated."""
    return _parameters(config.vision, config.text, config.objectives)


@cache
def _parameters(vision: VisionConfig, text: TextConfig, objectives: ObjectivesConfig) -> tuple[int, int]:
    with torch.device("meta"):
        student = PretrainingModel(vision, text, objectives)
        teacher = Encoders(vision, text, objectives, with_decoder=False)
    return sum(p.numel() for p in student.parameters() if p.requires_grad), sum(p.numel() for p in teacher.parameters())


def activation_bytes(config: PretrainingConfig, rows: int, tokens: int, half: bool) -> float:
    """What the backward pass of ``rows`` pairs needs of the forward pass, an estimate from the layers' saved tensors.

    A layer keeps, of each token, its two norms' inputs (float32), and in the products' precision the norms' outputs, queries,
    keys, values, the attention's output and both sides of the activation: 8 + 14 widths. With ``training.checkpoint_activations``
    it keeps its input, and of each stack the layer that is computed again is there as a whole.
    """
    size = 2 if half else _FLOAT
    vision, text = config.vision, config.text
    seen = visible_patches(vision, config.objectives) + 1

    def layers(depth: int, count: float, width: int, units: int) -> float:
        whole = count * width * (2 * _FLOAT + units * size)
        return depth * count * width * _FLOAT + whole if config.training.checkpoint_activations else depth * whole

    image = layers(vision.depth, seen, vision.width, 14) + layers(
        vision.decoder_depth, vision.patches + 1, vision.decoder_width, 14
    )
    words = layers(text.fusion_layer, 2 * tokens, text.width, 14)
    words += layers(text.depth - text.fusion_layer, 4 * tokens, text.width, 18)
    keys_values = (text.depth - text.fusion_layer) * 2 * 2 * seen * text.width * size
    return rows * (image + words + keys_values)


def contrast_bytes(config: PretrainingConfig, gpus: int, rows: int) -> float:
    """What a GPU holds of its own ``rows`` against the global batch and the queue: nothing is of size (global batch)^2.

    Of each pair, both ways: the similarity, its log-softmax and the teacher's softmax in float32, and whether it is excluded;
    of the global batch also the noise of the draws, as 64-bit numbers while they are made.
    """
    everyone = gpus * rows
    return rows * (2 * 3 * _FLOAT + 1) * (everyone + config.objectives.queue) + rows * everyone * 2 * 8


def accumulation_bytes(config: PretrainingConfig, gpus: int, rows: int, tokens: int) -> dict[str, float]:
    """What losses over the whole batch hold besides, with ``rows`` pairs per micro-batch (`tasks.accumulation`).

    Of all rows of a GPU the states of images and captions, those fetched as negatives, and the gradients of all of these, in
    float32, and the teacher's words; of the weights the sums of gradients, and those of the micro-batch that is being added.
    """
    vision, text, objectives = config.vision, config.text, config.objectives
    image = (visible_patches(vision, objectives) + 1) * vision.width
    states = 5 * image + (5 + 2) * tokens * text.width
    words = objectives.text_mask_ratio * (tokens - 1) * text.vocabulary_size
    trained, _ = parameters(config)
    return {
        "states of the batch": config.training.accumulation * rows * _FLOAT * (states + words),
        "sums of gradients": 2 * _FLOAT * trained,
        "draws": config.training.accumulation**2 * rows**2 * gpus * 3 * 8,
    }


def plan(
    config: PretrainingConfig,
    gpus: int,
    machine: Machine,
    *,
    rows: int,
    tokens: int = 25,
    bucket: int = 8_000_000,
    offload: bool = False,
    overlap: bool = False,
) -> Plan:
    """The plan of ``gpus`` GPUs with ``rows`` pairs each per micro-batch, under ZeRO-2 with float32 weights.

    ``offload``: moments, and copies of the weights and of their gradients, lie in the CPU's memory (`zero2_offload.json`).

    Gradients are reduce-scattered in buckets, in a ring (N - 1) / N of the parameters, in every micro-batch (ZeRO-2), or once per
    step where losses are those of the whole batch; the weights are all-gathered once per step. The gradients of a backward pass
    take the memory that its activations have left, and more only where they are larger. With ``offload`` gradients are DeepSpeed's,
    all-reduced.
    """
    half, accumulation = config.training.precision != "float32", config.training.accumulation
    together = accumulation > 1 and config.objectives.scope == "batch"
    reductions, sent = 1 if together else accumulation, 2 if offload else 1
    trained, followed = parameters(config)
    objectives = config.objectives
    queue = objectives.queue * (2 * objectives.projection * _FLOAT + 16)
    activations = activation_bytes(config, rows, tokens, half)
    of_a_pass = 0 if gpus == 1 else max(0, (2 if half else _FLOAT) * trained - activations)
    memory = {
        "parameters": _FLOAT * trained,
        "gradients": _FLOAT * trained / gpus + _FLOAT * bucket + of_a_pass,
        "optimizer": 0 if offload else 2 * _FLOAT * trained / gpus,
        "teacher": _FLOAT * followed,
        "queue": queue,
        "half-precision weights": 2 * trained if half else 0,
        "activations": activations,
        "contrast": contrast_bytes(config, gpus, rows),
        **(accumulation_bytes(config, gpus, rows, tokens) if together else {}),
    }
    kinds = {"moments": 2, "weights that are stepped": 1, "their gradients": 1} if offload else {}
    host = {kind: copies * _FLOAT * trained / gpus for kind, copies in kinds.items()}
    if config.training.save_in_background:
        host["copy that a save is written from (first GPU)"] = _FLOAT * (3 * trained + followed) + queue
    share = (gpus - 1) / gpus
    features = gpus * rows * (2 * objectives.projection * _FLOAT + 16)
    seen = visible_patches(config.vision, objectives) + 1
    exchanged = rows * (seen * config.vision.width + tokens * config.text.width) * (2 if half else _FLOAT)
    wire = {
        "gradients": reductions * sent * share * _FLOAT * trained,
        "weights": share * _FLOAT * trained,
        "features": accumulation * share * features,
        "hard negatives": accumulation * share * 2 * exchanged,
    }
    pair = sum(pretraining_flops(config, tokens, rows * gpus).values())
    if together:
        pair += second_encoding_flops(config, tokens)
    messages = reductions * -(-trained // bucket) + 2 + 8 * reductions
    network = sum(wire.values()) / machine.bytes_per_s + messages * machine.latency_s * max(0, gpus - 1) ** 0.5
    compute = accumulation * rows * pair / machine.flops_per_s
    return Plan(gpus, memory, host, wire, compute, network if gpus > 1 else 0.0, overlap)
