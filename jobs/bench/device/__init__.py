"""The parts of `jobs.bench.engine --device cuda`, beside what the card can do at most."""
