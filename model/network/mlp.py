"""The SwiGLU MLP of dense layers and shared experts (arXiv 2002.05202), and a linear map with GELU.

Letters: D hidden size.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Computes down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [..., D] to [..., D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LinearGelu(nn.Linear):
    """A linear map and the GELU of its output, which oneDNN does in one operation."""

    def __init__(
        self, in_features: int, out_features: int, *, approximate: Literal["none", "tanh"]
    ) -> None:
        super().__init__(in_features, out_features)
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name that nn.Linear gives it)
        """Map `input` [..., in_features] to [..., out_features]."""
        return F.gelu(super().forward(input), approximate=self.approximate)
