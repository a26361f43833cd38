"""Triton kernels for GPUs; the plain torch form of each stays beside its caller."""
