"""The demo: generated clips, the embedded checkpoint, and the job that shows both."""
