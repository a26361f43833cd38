"""A row's media value -> bytes or an open file, within what the user allowed."""
