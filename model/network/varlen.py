"""Attention within sequences of different lengths on GPUs: one call of torch's flash kernel.

This has not yet run on a GPU. Tests check its shapes and dtypes with fake CUDA tensors.

Letters: T tokens, B sequences, H heads.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)  # the dtypes that the kernel takes


@dataclass(frozen=True)
class Spans:
    """Sequences that stand one after another in a tensor; made once for all layers of a step."""

    lens: tuple[int, ...]  # of each sequence, on the host
    device: torch.device  # of the tensors

    @cached_property
    def starts(self) -> Tensor:
        """Where each sequence starts, and the end of the last: [B + 1] int32 on the device."""
        starts = torch.tensor([0, *accumulate(self.lens)], dtype=torch.int32)
        if self.device.type != "cuda":
            return starts.to(self.device)
        # Copied from pinned memory, so that the host does not wait for what the GPU has to do.
        return starts.pin_memory().to(self.device, non_blocking=True)


def runs_on(x: Tensor) -> bool:
    """Say whether `attend` takes tensors like this one."""
    return x.device.type == "cuda" and x.dtype in HALVES


def attend(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Do as `model.network.attend.attend_varlen`: output [T, H, width], lse [T, H] float32."""
    # It takes a second to import, which processes on CPUs need not wait for.
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    longest = max(spans.lens, default=0)
    output, lse = varlen_attn(
        query,
        key,
        value,
        spans.starts,
        spans.starts,
        longest,
        longest,
        return_aux=AuxRequest(lse=True),
        scale=scale,
        window_size=(-1, 0) if is_causal else (-1, -1),  # keys before and after; -1 is no limit
    )
    return output, lse.mT
