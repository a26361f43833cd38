"""What an engine takes of its device: the size of the batch and of the cache."""
