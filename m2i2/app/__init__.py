"""Doors to a finetuned model: a page in a browser (image, question, answers and where they come from), and lmms-eval."""
