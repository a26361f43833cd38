"""The engine: it schedules sequences, runs steps and samples tokens."""
