"""From shards to batches: the order, the sampling, the rows, the loader."""
