"""Instruments of the benchmarks: shapes, ranks, limits of the machine, turns and random files."""
