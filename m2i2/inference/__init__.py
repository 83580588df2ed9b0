"""Answers from a trained model: loading, ranking, generation, Grad-CAM."""
