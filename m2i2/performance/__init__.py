"""How fast and how large: analytic counts, measurements of every stage, and the model of runs on many GPUs."""
