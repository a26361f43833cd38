"""Which rank holds which experts, and how tokens reach them."""
