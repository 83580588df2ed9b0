"""A run as one page: what was trained, how it went, what it answers, and from what it came."""
