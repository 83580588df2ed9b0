"""A node's first minute: every rank is measured before a run starts, and the slow or wrong one is named."""
