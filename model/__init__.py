"""One process of plain torch: a prompt in, text out. Knows nothing of ranks or rows."""
