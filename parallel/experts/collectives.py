"""Collectives whose names differ between releases of torch.

torch 2.13 renamed two of them, and from then on it warns at the old names.
"""

try:
    from torch.distributed import all_gather_single, reduce_scatter_single
except ImportError:  # before 2.13
    from torch.distributed import all_gather_into_tensor as all_gather_single
    from torch.distributed import reduce_scatter_tensor as reduce_scatter_single

__all__ = ["all_gather_single", "reduce_scatter_single"]
