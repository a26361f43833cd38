"""Attention within sequences of different lengths on GPUs: one call of torch's flash kernel.

This has not yet run on a GPU. Tests check its shapes and dtypes with fake CUDA tensors.

Letters: T tokens, H heads.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

HALVES = (torch.bfloat16, torch.float16)  # the dtypes that the kernel takes


def runs_on(x: Tensor) -> bool:
    """Say whether `attend` takes tensors like this one."""
    return x.device.type == "cuda" and x.dtype in HALVES


def attend(
    query: Tensor, key: Tensor, value: Tensor, lens: Sequence[int], scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Do as `model.network.attend.attend_varlen`: output [T, H, width], lse [T, H] float32."""
    starts = torch.tensor([0, *accumulate(lens)], dtype=torch.int32, device=query.device)
    longest = max(lens, default=0)
    output, lse = varlen_attn(
        query,
        key,
        value,
        starts,
        starts,
        longest,
        longest,
        return_aux=AuxRequest(lse=True),
        scale=scale,
        window_size=(-1, 0) if is_causal else (-1, -1),  # keys before and after; -1 is no limit
    )
    return output, lse.mT
