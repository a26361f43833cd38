"""Triton kernels that take the place of plain torch on GPUs; each is tested against its twin."""
