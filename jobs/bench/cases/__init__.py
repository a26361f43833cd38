"""What `jobs.bench.engine` measures, one case a file."""
