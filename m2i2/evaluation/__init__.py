"""From a model to numbers: answers by ranking or generation, protocols, scores, baselines, results."""
