"""Losses, pure functions of tensors, one per file, and the registry of pretraining's objectives.

To add an objective without editing this package, see `registry`.
"""
