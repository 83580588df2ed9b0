"""WebDataset shards with an index: the format, building, storage, the cache."""
