"""What a run uses of its machines: groups, ranks, processors and expert placement."""
