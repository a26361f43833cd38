"""The output folder: its lock, its parts, its recipe, and which of its rows are done."""
