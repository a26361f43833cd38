"""Root-mean-square normalisation (arXiv 1910.07467); it rounds where the published model rounds."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Normalises in float32, rounds to the dtype of the input, then multiplies by the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [..., width] to [..., width]."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.type_as(x)
