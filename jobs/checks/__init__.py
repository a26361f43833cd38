"""The parts of `jobs.doctor`: findings, sampled rows, weights and memory, attacks, a trial."""
