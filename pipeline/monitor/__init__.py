"""The numbers of a run, for a terminal, a log, Prometheus and the report."""
