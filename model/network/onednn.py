"""Weights packed once into the layout in which this processor multiplies fastest.

oneDNN reads a plain weight less well than its own layout; `pack` reorders once, after loading, and
each plain weight goes as its packed form comes. Only bfloat16 on CPUs gains by it, so all else
stays as it is, and so does training: a packed weight has no gradient. No other file knows torch's
internal names for this.

Letters: D hidden size, F expert width, M rows that reach the held experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.mlp import LinearGelu
from model.network.moe import Experts

# Absorbed attention reads this weight by head.
NEVER_PACKED = "kv_b_proj"


class PrepackedMatrix:
    """A weight [outputs, inputs] in oneDNN's own layout.

    Args:
        weight: bfloat16, on a CPU.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())

    def product(self, rows: Tensor, bias: Tensor | None = None, gelu: str | None = None) -> Tensor:
        """`rows` [..., inputs] -> [..., outputs], as `F.linear`, and `gelu` as `LinearGelu`."""
        activation = "none" if gelu is None else "gelu"
        return torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, bias, activation, [], gelu or ""
        )


class PrepackedLinear(nn.Module):
    """In place of an `nn.Linear` or a `LinearGelu`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self._gelu = linear.approximate if isinstance(linear, LinearGelu) else None
        self._matrix = PrepackedMatrix(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear.forward`."""
        return self._matrix.product(x, self.bias, self._gelu)


class PrepackedExperts(nn.Module):
    """In place of `Experts`: a product for each expert that has rows."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self._gate_up = [PrepackedMatrix(weight) for weight in experts.gate_up_proj]
        self._down = [PrepackedMatrix(weight) for weight in experts.down_proj]

    def forward(self, rows: Tensor, rows_per_expert: Tensor) -> Tensor:
        """`rows` [M, D], by held expert, -> [M, D]."""
        y = torch.empty_like(rows)
        first = 0
        for expert, count in enumerate(rows_per_expert.tolist()):
            if count:
                # oneDNN compiles a kernel for every number of rows it meets; rows of the
                # neighbours fill up to one of few numbers, and their results are dropped.
                length = min(rounded_up(count), len(rows))
                start = min(first, len(rows) - length)
                window = self._expert(expert, rows[start : start + length])
                y[first : first + count] = window[first - start :][:count]
            first += count
        return y

    def _expert(self, expert: int, rows: Tensor) -> Tensor:
        gate, up = self._gate_up[expert].product(rows).chunk(2, dim=-1)  # [rows, F] each
        return self._down[expert].product(F.silu(gate) * up)


def rounded_up(count: int) -> int:
    """The next of few numbers of rows, at most an eighth (or 7 rows) more."""
    step = 8
    while step * 16 < count:
        step *= 2
    return -(-count // step) * step


def is_packable(weight: Tensor) -> bool:
    """Whether packing this weight is possible here, and worth it."""
    return (
        weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def pack(model: nn.Module) -> None:
    """Pack, in place, the weights of all linear maps and experts that gain by it.

    The plain weights go one by one, so the peak is one layer's experts more than the model.
    """
    for name, child in model.named_children():
        if isinstance(child, Experts) and is_packable(child.down_proj):
            setattr(model, name, PrepackedExperts(child))
        elif isinstance(child, nn.Linear) and is_packable(child.weight) and name != NEVER_PACKED:
            setattr(model, name, PrepackedLinear(child))
        else:
            pack(child)
