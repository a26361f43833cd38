"""Attention within packed sequences on GPUs, in one call of torch's own flash kernel.

Not yet run on a GPU: checked as far as shapes and dtypes go, under fake CUDA tensors.

Letters: T tokens, H heads.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

HALVES = (torch.bfloat16, torch.float16)  # what the kernel takes


def runs_on(x: Tensor) -> bool:
    """Whether `attend` takes tensors like this one."""
    return x.device.type == "cuda" and x.dtype in HALVES


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lens: Sequence[int],
    scale: float,
    *,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """As `model.network.attend.attend_packed`: output [T, H, width], lse [T, H] float32."""
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
        window_size=(-1, 0) if is_causal else (-1, -1),
    )
    return output, lse.mT
