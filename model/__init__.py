"""One process of plain torch: a prompt in, text out. Ranks and rows are unknown here."""
