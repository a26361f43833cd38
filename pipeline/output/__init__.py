"""The folder of an output: its lock, recipe, part files and journal, and which rows are done."""
