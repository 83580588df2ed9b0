"""M2I2: self-supervised vision-language pretraining and medical visual question answering, at any scale."""

__version__ = "0.1.0"
