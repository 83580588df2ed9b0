"""Whole jobs, from settings to a finished run."""
