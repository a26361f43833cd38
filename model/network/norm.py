"""Root-mean-square normalisation (arXiv 1910.07467); it rounds where the published model rounds."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Normalises in float32 at least, rounds to the dtype of `x`, then multiplies by the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [..., width] to [..., width]."""
        # Given the weight, `rms_norm` would round only after it.
        return self.weight * F.rms_norm(x, self.weight.shape, eps=self.eps)
