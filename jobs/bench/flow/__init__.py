"""Parts of `jobs.bench.pipeline`."""
