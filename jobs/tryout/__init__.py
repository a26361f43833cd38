"""The parts of `try_prompt`: a few rows, an engine in this process, and how answers are shown."""
