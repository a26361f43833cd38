"""Many GPUs: Ray actors that share the work of the model. Knows nothing of files or rows."""
