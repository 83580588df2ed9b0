"""Presets: the settings of the paper, of the official code, and of models for larger and smaller machines.

Where the paper (Li et al., ISBI 2023) and the official code differ, ``paper`` holds the paper's value and ``official`` the
code's. ``large``, ``small`` and ``tiny`` are ours.
"""

from dataclasses import replace
from typing import Any

from m2i2.config import (
    AnsweringConfig,
    C,
    DataConfig,
    FinetuningConfig,
    ObjectivesConfig,
    OptimizerConfig,
    PretrainingConfig,
    StartConfig,
    TextConfig,
    TrainingConfig,
    ValidationConfig,
    VisionConfig,
)
from m2i2.errors import M2I2Error

_VQA_OPTIMIZER = OptimizerConfig(lr=2e-5, final_lr=1e-6, warmup_lr=2e-5)


def _paper() -> tuple[PretrainingConfig, FinetuningConfig]:
    """The paper's settings (section 3): 40 epochs at batch 32, then 40 epochs at batch 8 and 384 pixels."""
    start = StartConfig(text="bert-base-uncased", image="facebook/vit-mae-base")
    pretraining = PretrainingConfig(preset="paper", start=start)
    finetuning = FinetuningConfig(
        preset="paper",
        vision=replace(pretraining.vision, image_size=384),
        data=DataConfig(crop_scale=(0.5, 1.0)),
        optimizer=_VQA_OPTIMIZER,
        training=TrainingConfig(epochs=40, batch=8),
        start=start,
    )
    return pretraining, finetuning


def _official() -> tuple[PretrainingConfig, FinetuningConfig]:
    """The official code's settings, its habits included: flips, local negatives, no care for false negatives."""
    pretraining, finetuning = _paper()
    return (
        replace(
            pretraining,
            preset="official",
            objectives=replace(pretraining.objectives, negatives="local", false_negatives="official"),
            data=replace(pretraining.data, flip=True),
            optimizer=replace(pretraining.optimizer, weight_decay=0.02, warmup_epochs=1.0),
            training=replace(pretraining.training, epochs=30, batch=16),
        ),
        replace(
            finetuning,
            preset="official",
            answering=replace(finetuning.answering, decoder_start="multimodal"),
            data=replace(finetuning.data, flip=True),
            optimizer=replace(finetuning.optimizer, weight_decay=0.02),
            training=replace(finetuning.training, epochs=30),
        ),
    )


def _large() -> tuple[PretrainingConfig, FinetuningConfig]:
    """The paper's settings with ViT-L/16 (1024 wide) beside BERT-base (768 wide); MAE's pixel decoder is that of ViT-B."""
    pretraining, finetuning = _paper()
    start = StartConfig(text="bert-base-uncased", image="facebook/vit-mae-large")
    vision = replace(pretraining.vision, width=1024, depth=24, heads=16)
    return (
        replace(pretraining, preset="large", vision=vision, start=start),
        replace(finetuning, preset="large", vision=replace(vision, image_size=finetuning.vision.image_size), start=start),
    )


def _small() -> tuple[PretrainingConfig, FinetuningConfig]:
    """384 wide: ViT-S/16 and a text stack of MiniLM-L6's shape; a CPU pretrains it on thousands of pairs in an hour."""
    vision = VisionConfig(image_size=128, width=384, depth=12, heads=6, decoder_width=192, decoder_depth=4, decoder_heads=6)
    text = TextConfig(width=384, depth=6, fusion_layer=3, intermediate=1536, decoder_depth=3)
    pretraining = PretrainingConfig(
        preset="small",
        vision=vision,
        text=text,
        objectives=ObjectivesConfig(queue=2048),
        optimizer=OptimizerConfig(lr=3e-4, warmup_epochs=1.0),
        training=TrainingConfig(epochs=20, batch=32, save_every=200),
        validation=ValidationConfig(every=200, pairs=256),
    )
    finetuning = FinetuningConfig(
        preset="small",
        vision=vision,
        text=text,
        data=DataConfig(crop_scale=(0.5, 1.0)),
        optimizer=OptimizerConfig(lr=1e-4, final_lr=1e-6, warmup_epochs=0.5),
        training=TrainingConfig(epochs=15, batch=16),
    )
    return pretraining, finetuning


def _tiny() -> tuple[PretrainingConfig, FinetuningConfig]:
    """128 wide: for the demo and the tests; seconds an epoch on a laptop. Its tokenizer is trained on its own captions."""
    vision = VisionConfig(
        image_size=64, patch_size=8, width=128, depth=4, heads=4, decoder_width=64, decoder_depth=2, decoder_heads=4
    )
    text = TextConfig(
        vocabulary_size=1024,
        width=128,
        depth=4,
        fusion_layer=2,
        heads=4,
        intermediate=512,
        positions=64,
        dropout=0.0,
        attention_dropout=0.0,
        initializer_range=0.05,
        decoder_depth=2,
    )
    pretraining = PretrainingConfig(
        preset="tiny",
        vision=vision,
        text=text,
        objectives=ObjectivesConfig(queue=0, projection=64, momentum=0.98),  # with one, it learnt the features' age
        data=DataConfig(crop_scale=(0.8, 1.0), randaugment=(0, 0), workers=1, max_tokens=32),
        optimizer=OptimizerConfig(lr=1e-3, warmup_epochs=1.0),
        training=TrainingConfig(epochs=8, batch=32, save_every=200),
        validation=ValidationConfig(every=100, pairs=128),
    )
    finetuning = FinetuningConfig(
        preset="tiny",
        vision=vision,
        text=text,
        answering=AnsweringConfig(momentum=0.98, decoder_start="multimodal"),
        data=DataConfig(crop_scale=(0.8, 1.0), randaugment=(0, 0), workers=1),
        optimizer=OptimizerConfig(lr=3e-4, final_lr=1e-5, warmup_epochs=0.5, clip=1.0),
        training=TrainingConfig(epochs=8, batch=32, save_every=500),
    )
    return pretraining, finetuning


PRESETS = {"paper": _paper, "official": _official, "large": _large, "small": _small, "tiny": _tiny}


def for_ranks(settings: C, ranks: int) -> C:
    """The settings with a batch that ``ranks`` can share out: a preset's own becomes the next multiple where it does not divide.

    A batch that is not the preset's was chosen, and stays.
    """
    of_preset = (
        PRESETS[settings.preset]()[0 if isinstance(settings, PretrainingConfig) else 1] if settings.preset in PRESETS else None
    )
    training, together = settings.training, ranks * settings.training.accumulation
    if of_preset is None or training.batch != of_preset.training.batch:
        return settings
    return replace(settings, training=replace(training, batch=-(-training.batch // together) * together))


def preset(name: str) -> tuple[PretrainingConfig, FinetuningConfig]:
    """Pretraining and finetuning settings of a preset; an M2I2Error lists the presets where there is none of that name."""
    if name not in PRESETS:
        raise M2I2Error(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return PRESETS[name]()


def pretraining_preset(name: str, **changes: Any) -> PretrainingConfig:
    """The pretraining settings of a preset, with whole sections replaced by ``changes``."""
    return replace(preset(name)[0], **changes)


def finetuning_preset(name: str, **changes: Any) -> FinetuningConfig:
    """The finetuning settings of a preset, with whole sections replaced by ``changes``."""
    return replace(preset(name)[1], **changes)
