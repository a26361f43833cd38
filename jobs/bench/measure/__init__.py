"""Instruments of the benchmarks: shapes, limits of the machine, turns and random files."""
