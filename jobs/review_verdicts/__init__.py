"""What reviewers said: read, merged, compared, and written for those who use it."""
