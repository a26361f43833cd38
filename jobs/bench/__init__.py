"""The parts of `jobs.bench.engine`."""
