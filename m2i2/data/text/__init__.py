"""Texts: how they are cleaned, and the tokenizer."""
