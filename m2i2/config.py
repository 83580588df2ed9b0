"""Every knob once: frozen settings with units and sources.

Names follow the paper (Li et al., ISBI 2023). `presets.py` has whole sets of them; their command line is in `options.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from m2i2.errors import M2I2Error


def require(condition: bool, message: str) -> None:
    """Raise an M2I2Error with ``message`` unless ``condition`` holds."""
    if not condition:
        raise M2I2Error(message)


def _require_positive(settings: Any, section: str, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(settings, name)
        require(value >= 1, f"{section}.{name}={value} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The image encoder (ViT) and the pixel decoder of masked image modelling (MAE)."""

    image_size: int = 256
    """Side of the square input, pixels."""
    patch_size: int = 16
    """Side of a square patch, pixels; the image's side is a multiple of it."""
    width: int = 768
    """Width of the image encoder's tokens."""
    depth: int = 12
    """Layers of the image encoder."""
    heads: int = 12
    """Attention heads of each; they share out the width."""
    pre_norm: bool = False
    """Normalise the embeddings before the first layer, as CLIP does."""
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    """Of the image encoder's layers; OpenAI's CLIP has quick_gelu."""
    layer_norm_eps: float = 1e-6
    """What the image encoder's norms add to the variance; 1e-5 in CLIP."""
    decoder_width: int = 512
    """Width of the pixel decoder's tokens (pretraining only)."""
    decoder_depth: int = 8
    """Layers of the pixel decoder (pretraining only)."""
    decoder_heads: int = 16
    """Attention heads of each of the pixel decoder's layers (pretraining only)."""

    def __post_init__(self) -> None:
        sizes = ("image_size", "patch_size", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads")
        _require_positive(self, "vision", sizes)
        require(
            self.image_size % self.patch_size == 0,
            f"vision.image_size={self.image_size} is not a multiple of vision.patch_size={self.patch_size}; choose one that is.",
        )
        require(self.width % self.heads == 0, f"vision.width={self.width} does not divide by vision.heads={self.heads}.")
        require(self.layer_norm_eps > 0, f"vision.layer_norm_eps={self.layer_norm_eps} must be above 0.")
        for name in ("width", "decoder_width"):  # sine-cosine positions come in fours
            value = getattr(self, name)
            require(value % 4 == 0, f"vision.{name}={value} is not a multiple of 4; choose one that is.")
        require(
            self.decoder_width % self.decoder_heads == 0,
            f"vision.decoder_width={self.decoder_width} does not divide by vision.decoder_heads={self.decoder_heads}.",
        )

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """One BERT, split: layers below ``fusion_layer`` read text alone, the rest also attend to the image."""

    vocabulary_size: int = 30522
    """Tokens of the vocabulary; a run takes its tokenizer's. A tokenizer that is trained on the captions has at most so many."""
    width: int = 768
    """Width of the text encoder's tokens."""
    depth: int = 12
    """Layers, those of the multimodal encoder included."""
    fusion_layer: int = 6
    """The first layer, from 0, that reads the image too: so many layers read text alone."""
    heads: int = 12
    """Attention heads of each layer; they share out the width."""
    intermediate: int = 3072
    """Width inside a layer's feed-forward network."""
    positions: int = 512
    """Longest text in tokens that the position table serves."""
    dropout: float = 0.1
    """Share of the hidden states' values that are dropped; in training only."""
    attention_dropout: float = 0.1
    """Share of the attention's probabilities that are dropped; in training only."""
    layer_norm_eps: float = 1e-12
    """Added to the variance that a LayerNorm divides by (BERT's value)."""
    initializer_range: float = 0.02
    """Standard deviation of random text weights (BERT's). A narrow model without a start needs more: 0.02 * sqrt(768 / width)."""
    decoder_depth: int = 6
    """Layers of the answer decoder (VQA only)."""

    def __post_init__(self) -> None:
        sizes = ("vocabulary_size", "width", "depth", "heads", "intermediate", "positions", "decoder_depth")
        _require_positive(self, "text", sizes)
        require(self.width % self.heads == 0, f"text.width={self.width} does not divide by text.heads={self.heads}.")
        require(
            0 < self.fusion_layer < self.depth,
            f"text.fusion_layer={self.fusion_layer} must lie between 1 and text.depth - 1 = {self.depth - 1}.",
        )
        require(0 <= self.dropout < 1 and 0 <= self.attention_dropout < 1, "text.dropout rates must lie in [0, 1).")


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """The four objectives; the loss is their weighted sum (paper: all weights 1). Weight 0 leaves an objective out."""

    mim: float = 1.0
    """Weight of masked image modelling: the pixels of masked patches."""
    mlm: float = 1.0
    """Weight of masked language modelling: the masked words, from text and image."""
    itm: float = 1.0
    """Weight of image-text matching: do image and caption belong together, with hard negatives."""
    itc: float = 1.0
    """Weight of the image-text contrast against the teacher's features."""
    image_mask_ratio: float = 0.15
    """Share of the patches that are dropped; floor(patches * (1 - ratio)) stay."""
    text_mask_ratio: float = 0.15
    """Share of a caption's tokens that are to be predicted, each drawn with this probability."""
    projection: int = 256
    """Width of the contrastive features."""
    temperature: float = 0.07
    """Start value; learnable, clamped to [objectives.lowest_temperature, 0.5]."""
    distillation: float = 0.4
    """Share a of the teacher's soft targets in ITC and MLM, ramped linearly from 0 over the first epoch."""
    queue: int = 65536
    """Pairs kept as further negatives of ITC."""
    momentum: float = 0.995
    """What the teacher's moving average keeps of itself, per optimizer step: a share, near 1."""
    negatives: Literal["global", "local"] = "global"
    """Where ITC's in-batch and ITM's hard negatives come from: all ranks' batches, or (official) the rank's own."""
    false_negatives: Literal["exclude", "official"] = "exclude"
    """Whether pairs that share an image or a caption may be each other's negatives (official: they may)."""
    similar_captions: float = 1.0
    """Pairs whose captions have at least this cosine similarity to the teacher are not each other's negatives either; 1 = only
    equal captions are excluded (official: none). Needs objectives.false_negatives=exclude."""
    hardness: float = 1.0
    """ITM's negatives are drawn with probability softmax(hardness * similarity / temperature); 0 = all alike (official: 1)."""
    lowest_temperature: float = 0.001
    """Bound of the learnable temperature (official: 0.001)."""
    scope: Literal["batch", "micro_batch"] = "batch"
    """What the losses are computed over if training.accumulation is above 1. batch: the whole batch, as without accumulation;
    images and captions are encoded twice. micro_batch: each micro-batch alone; cheaper, but with fewer negatives (the only way up
    to release 0.2.0)."""
    plugins: tuple[str, ...] = ()
    """Python modules that register further objectives (see docs/extending.md). They are imported, and so run."""

    def __post_init__(self) -> None:
        require(0 < self.image_mask_ratio < 1, f"objectives.image_mask_ratio={self.image_mask_ratio} must lie in (0, 1).")
        require(0 < self.text_mask_ratio < 1, f"objectives.text_mask_ratio={self.text_mask_ratio} must lie in (0, 1).")
        require(0 <= self.distillation <= 1, f"objectives.distillation={self.distillation} must lie in [0, 1].")
        require(0 <= self.momentum <= 1, f"objectives.momentum={self.momentum} must lie in [0, 1].")
        require(0 < self.similar_captions <= 1, f"objectives.similar_captions={self.similar_captions} must lie in (0, 1].")
        require(
            self.similar_captions == 1 or self.false_negatives == "exclude",
            "objectives.similar_captions excludes pairs, which objectives.false_negatives=official does not do; choose one.",
        )
        require(self.hardness >= 0, f"objectives.hardness={self.hardness} must not be negative.")
        require(
            0 < self.lowest_temperature <= 0.5,
            f"objectives.lowest_temperature={self.lowest_temperature} must lie in (0, 0.5].",
        )
        require(self.queue >= 0, f"objectives.queue={self.queue} must not be negative.")
        weights = (self.mim, self.mlm, self.itm, self.itc)
        require(min(weights) >= 0, f"The objective weights {weights} must not be negative.")
        require(max(weights) > 0 or bool(self.plugins), f"One of the objective weights {weights} must be above 0.")


@dataclass(frozen=True, kw_only=True)
class AnsweringConfig:
    """Finetuning to answer questions, generatively."""

    distillation: float = 0.4
    """Share a of the teacher's soft targets, ramped over the first epoch; 0 switches the teacher off (official: PathVQA, SLAKE)."""
    momentum: float = 0.995
    """What the teacher's moving average keeps of itself, per optimizer step: a share, near 1."""
    answer_weight: float = 0.5
    """Factor on an answer's summed token loss (official: every answer weighs 0.5)."""
    decoder_start: Literal["text", "multimodal"] = "text"
    """Whose layers start the answer decoder: BERT's own (paper) or the pretrained multimodal ones (official code)."""
    normalisation: Literal["auto", "official", "fixed", "fixed-0.1"] = "auto"
    """How answers and questions are cleaned: ``fixed`` trains, ranks and scores one form that loses no sign (clean), ``official``
    is the published code's (paper); auto goes by the protocol. See m2i2/data/text/cleaning.py."""
    max_unknown: float = 0.05
    """Share of [UNK] among the tokens of questions or answers beyond which a vocabulary does not fit: a warning, clean refuses."""
    protocol: Literal["paper", "clean"] = "paper"
    """clean: trains on no rewrite of a test question, and chooses the best checkpoint by images of no test set."""
    selection: float = 0.1
    """Share of the training questions that clean keeps for that choice where the data has no val split; 0: the last checkpoint."""
    rewrites: bool = False
    """Train on the rewrites of test questions although the protocol is clean: to measure what that leak is worth."""
    select_every: float = 1.0
    """Epochs between two scorings of the selection."""

    def __post_init__(self) -> None:
        require(0 <= self.selection < 1, f"answering.selection={self.selection} is a share: from 0 to below 1.")
        require(self.select_every > 0, f"answering.select_every={self.select_every} must be above 0.")
        require(0 <= self.max_unknown <= 1, f"answering.max_unknown={self.max_unknown} is a share: from 0 to 1.")

    @property
    def form(self) -> Literal["official", "fixed", "fixed-0.1"]:
        """The form of answers that ``normalisation`` stands for."""
        if self.normalisation == "auto":
            return "fixed" if self.protocol == "clean" else "official"
        return self.normalisation

    @staticmethod
    def upgraded(stored: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings that version 0.1 stored, in today's terms: its ``fixed`` cleaned numbers, articles and signs away."""
        of_0_1 = "select_every" in stored and "max_unknown" not in stored
        return {**stored, "normalisation": "fixed-0.1"} if of_0_1 and stored.get("normalisation") == "fixed" else stored


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where shards behind a URL are kept, and how they are fetched. Folders of this machine need none of it."""

    cache_folder: str = ""
    """Where shards behind a URL are kept: on a disk of the node, shared by its ranks. Empty: m2i2/shards in $XDG_CACHE_HOME."""
    cache_gb: float = 20.0
    """Largest size of that folder, 10^9 bytes; it must hold two windows of shards, and three for fetching ahead of need."""
    cache_attempts: int = 5
    """How often a file is asked for, with growing pauses, before the run ends with an error."""
    cache_timeout: float = 30.0
    """Seconds without a byte, or to connect, after which an attempt has failed."""
    cache_hosts: tuple[str, ...] = ()
    """Hosts, or HOST:PORT, to which an HTTP server may redirect, and which may have a link-local or metadata address."""
    cache_metadata: bool = False
    """Whether an object store's client may ask the machine's metadata service for credentials."""

    def __post_init__(self) -> None:
        require(0 < self.cache_gb < 1e9, f"data.cache_gb={self.cache_gb} must lie between 0 and 1e9.")
        require(self.cache_attempts >= 1, f"data.cache_attempts={self.cache_attempts} must be at least 1.")
        require(0 < self.cache_timeout < 1e9, f"data.cache_timeout={self.cache_timeout} must lie between 0 and 1e9.")


@dataclass(frozen=True, kw_only=True)
class DataConfig(CacheConfig):
    """What is read, and how it is augmented."""

    shards: tuple[str, ...] = ()
    """Folders made by tools/make_shards.py, or their URLs (s3://, https:// and others)."""
    split: str = "train"
    """Split of the shards that is trained on."""
    max_words: int = 30
    """Longer captions and questions are cut after this many words (official)."""
    max_tokens: int = 25
    """Longer captions are cut to this many tokens, [CLS] and [SEP] included."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of the image's area that a random resized crop keeps."""
    flip: bool = False
    """Mirror half of the images. Off by default: captions and questions name sides."""
    randaugment: tuple[int, int] = (2, 7)
    """Operations per image, magnitude (0 to 10); 0 operations switch RandAugment off."""
    workers: int = 2
    """Loader processes of each rank; 0 loads in the training process."""
    window: int = 16
    """Shards whose samples are shuffled together."""
    max_unreadable: float = 0.01
    """Share of the data set that may turn out unreadable while training; others take the place of unreadable samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"data.crop_scale={self.crop_scale} must satisfy 0 < low <= high <= 1.")
        require(self.workers >= 0, f"data.workers={self.workers} must not be negative.")
        require(0 <= self.max_unreadable <= 1, f"data.max_unreadable={self.max_unreadable} is a share: from 0 to 1.")
        require(self.window >= 1, f"data.window={self.window} must be at least 1.")
        require(self.max_tokens >= 3, f"data.max_tokens={self.max_tokens} leaves no room between [CLS] and [SEP].")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a cosine schedule per step, and a linear warm-up before it."""

    lr: float = 1e-4
    """Highest learning rate, where the cosine begins. Not scaled with the batch or the number of ranks."""
    final_lr: float = 1e-5
    """Learning rate at the end of the last epoch."""
    warmup_lr: float = 1e-5
    """Learning rate of the first step of the warm-up."""
    warmup_epochs: float = 0.0
    """Length of the linear warm-up, epochs; part of training.epochs. 0 = none."""
    weight_decay: float = 0.002
    """Share, times the learning rate, that each step takes off the weight matrices (AdamW); norms and biases keep theirs."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the gradient's first and second moment, per optimizer step."""
    eps: float = 1e-8
    """Added to the root of the second moment that AdamW divides by."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 switches clipping off (official)."""

    def __post_init__(self) -> None:
        require(
            self.lr > 0 and self.final_lr >= 0,
            f"optimizer.lr={self.lr} must be above 0, final_lr={self.final_lr} not below.",
        )
        require(self.clip >= 0, f"optimizer.clip={self.clip} must not be negative; 0 switches clipping off.")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how fast, how safe."""

    epochs: int = 40
    """Passes over the data; the schedule of the learning rate ends with the last."""
    max_steps: int = 0
    """Stop after this many optimizer steps, without changing the schedule; 0 = after the last epoch."""
    batch: int = 32
    """Global batch of an optimizer step, in samples: over all ranks and all micro-batches."""
    accumulation: int = 1
    """Micro-batches per optimizer step: less memory, the same losses (but see objectives.scope)."""
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of matrix products; auto takes bfloat16 where the processor or GPU has it. Weights are float32 always. float16 is for GPUs
    without bfloat16: it scales the loss."""
    tf32: bool = False
    """Let a GPU round the inputs of float32 matrix products to 10 bits (TF32). Without effect where products are half precision."""
    seed: int = 0
    """What everything random is drawn from: weights, order, augmentation, masks, negatives, dropout."""
    save_every: int = 500
    """Optimizer steps between checkpoints; the end of the run is saved always."""
    save_minutes: float = 0.0
    """Save also where so many minutes have passed since the last save; 0 = by steps alone."""
    save_in_background: bool = True
    """Copy the state in the host's memory, and write it beside the training; false: training stands still until it is written."""
    grace_seconds: float = 0.0
    """Time from a stop signal to the kill: no last save begins that would take longer than what is left. 0 = unknown: save."""
    keep: int = 3
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Keep also, for good, the checkpoints of every so many optimizer steps; 0 = none."""
    check_state: bool = False
    """Compare checksums of weights, moments, teacher and queue between steps and ranks. Reads all of them twice per step."""
    replay_every: int = 500
    """Optimizer steps between two replays: each rank computes a micro-batch again that another rank has computed, and bits are
    compared (a rank alone: twice, and products whose result is known). A rank that computes wrongly is named, and the run ends.
    A replay takes as long as 2 micro-batches. 0 = none."""
    hang_seconds: float = 600.0
    """A rank that takes longer for a step (and longer than 10 usual steps) is named and ended, after a warning at half of it. The
    first step, saves and validations may take 6 times as long. 0 = nobody looks."""
    max_nonfinite: int = 10
    """Optimizer steps in a row whose loss or gradient may be infinite or NaN; such steps are skipped."""
    spike_sigma: float = 0.0
    """Standard deviations above the recent losses at which a loss is a spike: its step is computed again, then ``on_spike`` says
    what happens. 0 = losses are not looked at; 10 is a careful value."""
    on_spike: Literal["keep", "skip", "rollback"] = "keep"
    """What becomes of a spike that is there again: its step counts, or is skipped, or the run goes back to its newest checkpoint
    and skips the steps since, with their data (PaLM, OLMo)."""
    log_every: int = 10
    """Optimizer steps between two lines of log.jsonl, which hold means over them."""
    log_items: bool = False
    """Write the numbers of each step's samples to items.jsonl: what was consumed, for audits."""
    kernels: Literal["auto", "apex", "fused", "plain"] = "auto"
    """Of AdamW (and, with apex, of LayerNorm); auto takes apex where it is whole, else PyTorch's fused ones, else plain ones.
    plain computes attention and linear layers by PyTorch's own kernels too, where the project has some for CPUs."""
    compile: bool = False
    """Let torch.compile fuse the layers' elementwise work; needs a C++ compiler, and the first steps take minutes."""
    engine: Literal["auto", "flat", "deepspeed"] = "auto"
    """What partitions moments and gradients over ranks (ZeRO). flat sums gradients in buckets after a backward pass; deepspeed is
    DeepSpeed's own engine, which calls Python for every parameter. auto takes flat, unless the DeepSpeed configuration asks for
    what only DeepSpeed's own engine does, such as offloading."""
    half_weights: Literal["auto", "on", "off"] = "auto"
    """Keep half-precision copies of the weights for matrix products, refreshed once per step, in place of a cast for each product:
    2 bytes for every weight of student and teacher. auto keeps them on a GPU. They need half precision. DeepSpeed's own engine has
    none."""
    graphs: bool = True
    """Record a step on one GPU as a CUDA graph for each shape of batch, and launch it as one. Without effect elsewhere."""
    checkpoint_activations: bool = False
    """Recompute layers in the backward pass: less memory, about a third more time."""
    profile: int = 0
    """Steps that rank 0 profiles, after the first few of a start, into trace.json.gz of the run's folder; 0 = none, at no cost."""

    def __post_init__(self) -> None:
        _require_positive(self, "training", ("epochs", "batch", "accumulation", "save_every", "keep", "log_every"))
        require(
            min(self.keep_every, self.max_nonfinite, self.profile, self.replay_every) >= 0,
            "training.keep_every, max_nonfinite, profile and replay_every must not be negative.",
        )
        require(
            min(self.save_minutes, self.grace_seconds, self.hang_seconds, self.spike_sigma) >= 0,
            "training.save_minutes, grace_seconds, hang_seconds and spike_sigma must not be negative; 0 switches each off.",
        )
        require(
            self.batch % self.accumulation == 0,
            f"training.batch={self.batch} does not divide by training.accumulation={self.accumulation}.",
        )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What is measured while a pretraining run goes on: always the same pairs, with the same masks and no augmentation."""

    every: int = 500
    """Optimizer steps between validations, and at the end of the run; 0 = none."""
    split: str = "val"
    """Split of the shards that is measured; shards without it are left out."""
    pairs: int = 512
    """Pairs that are measured, and searched by retrieval, in whole batches of training's size."""
    pictures: int = 6
    """Reconstructions of masked images, and examples of retrieval, that each validation keeps."""

    def __post_init__(self) -> None:
        require(min(self.every, self.pictures) >= 0, "validation.every and validation.pictures must not be negative.")
        require(self.pairs >= 1, f"validation.pairs={self.pairs} must be at least 1; validation.every=0 switches validation off.")


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Where a run's figures go beside the terminal, log.jsonl and validation.jsonl."""

    tensorboard: Literal["auto", "on", "off"] = "auto"
    """Event files in the run's folder; auto writes them where tensorboard is installed."""
    wandb: Literal["off", "online", "offline"] = "off"
    """Weights & Biases; offline writes into the run's folder, for `wandb sync`."""
    wandb_project: str = "m2i2"
    """Project of Weights & Biases that runs appear in."""
    peak_tflops: float = 0.0
    """What one rank's device can do at the run's precision, 1e12 operations per second; MFU is shown where it is above 0."""

    def __post_init__(self) -> None:
        require(self.peak_tflops >= 0, f"monitor.peak_tflops={self.peak_tflops} must not be negative.")


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Weights and vocabulary to start from: names on the Hugging Face hub, local folders, or official .pth files."""

    tokenizer: str = ""
    """A WordPiece tokenizer (hub name or folder). Empty: that of ``text``, or the one stored with ``checkpoint``."""
    text: str = ""
    """A BERT (hub name or folder). Empty: random weights."""
    image: str = ""
    """A ViT: MAE, DINOv2, a tower of CLIP or a plain one (hub name, timm:NAME, folder or file). Empty: random weights."""
    checkpoint: str = ""
    """A run folder of ours or an official .pth; it takes precedence over ``text`` and ``image``. In finetuning, ``text`` then
    starts the answer decoder's own layers (answering.decoder_start)."""
    cross_attention: Literal["random", "zero"] = "random"
    """How text starts to read the image without ``checkpoint``: at random (official), or through an output of zero, so that the
    image adds nothing at first and joins as training asks for it."""


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """Everything that decides a pretraining run."""

    preset: str = "paper"
    """Name of the preset that the settings began as; chosen by --preset."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    start: StartConfig = field(default_factory=StartConfig)


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig:
    """Everything that decides a VQA finetuning run."""

    preset: str = "paper"
    """Name of the preset that the settings began as; chosen by --preset."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    answering: AnsweringConfig = field(default_factory=AnsweringConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    start: StartConfig = field(default_factory=StartConfig)


C = TypeVar("C", PretrainingConfig, FinetuningConfig)


def completed(stored: dict[str, Any]) -> dict[str, Any]:
    """The same settings, stored by a run, with those that its version did not have yet as it behaved."""
    objectives, training = stored.get("objectives"), stored.get("training")
    if isinstance(objectives, dict) and "scope" not in objectives and isinstance(training, dict):
        # up to 0.2 losses were those of a micro-batch
        scope = "batch" if training.get("accumulation", 1) == 1 else "micro_batch"
        return {**stored, "objectives": {**objectives, "scope": scope}}
    return stored
