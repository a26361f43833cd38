"""A running job's numbers: for a terminal, a log, Prometheus and the report."""
