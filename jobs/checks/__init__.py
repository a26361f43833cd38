"""The checks of `jobs.doctor`: sampled rows, weights and memory, hostile media, a trial."""
