"""The parts of `jobs.sweep_videos`: datasets, grids, runs, scores and results."""
