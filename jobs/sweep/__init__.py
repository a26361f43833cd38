"""The parts of `jobs.sweep_videos`."""
