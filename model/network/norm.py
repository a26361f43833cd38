"""Root-mean-square normalisation (arXiv 1910.07467), rounded where the published model rounds."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Normalise in float32, round to the input's dtype, then multiply by the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., width] -> [..., width]."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.type_as(x)
