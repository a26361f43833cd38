"""Benchmarks: each module is a command that prints a table and ends with one JSON object."""
