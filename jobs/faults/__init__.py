"""Fault drills: runs whose processes are killed or stopped, compared with undisturbed runs."""
