"""Many GPUs: Ray actors that run the model together. Files and rows are unknown here."""
