"""Fault injection: jobs whose processes are killed or stopped, compared with undisturbed runs."""
