"""Which rank holds which experts, and how tokens travel to them."""
