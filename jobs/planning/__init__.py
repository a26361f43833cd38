"""The cost model of `jobs.plan`."""
