"""The parts of `jobs.review`: rows, shots (thumbnails), page, verdicts."""
