"""Entry points: each module is a command."""
