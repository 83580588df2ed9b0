"""Masked image modelling: the pixels of the patches that were left out."""

from torch import Tensor

from m2i2.precision import full


def mim_loss(predicted: Tensor, pixels: Tensor) -> Tensor:
    """Mean squared error, per patch and then over the masked patches (paper; MAE without per-patch normalisation).

    ``predicted``, ``pixels``: [B, masked, patch * patch * 3], in the encoder's normalised pixel values.
    """
    return (full(predicted) - full(pixels)).square().mean()
