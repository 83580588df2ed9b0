"""Why an answer was given: where in the image the multimodal encoder looked for it."""
