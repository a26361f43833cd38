"""What a run uses of a cluster: groups, ranks, processors and expert placement."""
