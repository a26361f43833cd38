"""The rooms of `jobs.review`: rows, parts, shots (thumbnails, in strips), page, verdicts."""
