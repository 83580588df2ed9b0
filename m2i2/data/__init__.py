"""From source files to batches: sources -> shards -> order -> loader."""
