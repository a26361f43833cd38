"""The parts of `jobs.bench_engine`."""
