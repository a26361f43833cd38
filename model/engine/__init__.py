"""The engine: schedules sequences, runs steps and samples tokens."""
