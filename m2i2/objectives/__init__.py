"""The objectives of pretraining: pure functions of tensors, one loss a file, and their registry."""
