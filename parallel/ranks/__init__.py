"""One rank: its engine, its requests, and its steps in lockstep with its group."""
