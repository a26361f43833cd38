"""The parts of `jobs.bench.pipeline`."""
