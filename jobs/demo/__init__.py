"""The demo: generated scenes, their language, and the measurement of its small checkpoint."""
