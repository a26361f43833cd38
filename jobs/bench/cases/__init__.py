"""The parts of `jobs.bench.engine`, one case per file."""
