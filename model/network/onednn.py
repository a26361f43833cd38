"""Prepacking: weights are reordered once into the format in which oneDNN multiplies fastest.

`prepack` does it after loading, and drops each plain weight as soon as its prepacked form exists.
Only bfloat16 on CPUs becomes faster, so all other weights stay plain. So do weights in training,
because a prepacked weight has no gradient. Only this file uses torch's internal operators for it.

Letters: D hidden size, F expert width, M rows that reach the local experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.mlp import LinearGelu
from model.network.moe import Experts, RowExperts

# Absorbed attention reads this weight head by head, which the format of oneDNN does not allow.
NEVER_PREPACKED = "kv_b_proj"


class PrepackedMatrix:
    """A bfloat16 weight [outputs, inputs] on a CPU, in oneDNN's own format."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())

    def product(self, rows: Tensor, bias: Tensor | None = None, gelu: str | None = None) -> Tensor:
        """Map bfloat16 `rows` [..., inputs] to [..., outputs].

        `gelu` applies the GELU with this approximation, "none" or "tanh"; None applies no GELU.
        """
        activation = "none" if gelu is None else "gelu"
        return torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, bias, activation, [], gelu or ""
        )


class PrepackedLinear(nn.Module):
    """Takes the place of an `nn.Linear` or a `LinearGelu`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self._gelu = linear.approximate if isinstance(linear, LinearGelu) else None
        self._matrix = PrepackedMatrix(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [..., inputs] to [..., outputs]."""
        return self._matrix.product(x, self.bias, self._gelu)


class PrepackedExperts(RowExperts):
    """Takes the place of `Experts`: one product for each expert that has rows."""

    def __init__(self, experts: Experts) -> None:
        super().__init__(len(experts.rows_computed))
        self._gate_up = [PrepackedMatrix(weight) for weight in experts.gate_up_proj]
        self._down = [PrepackedMatrix(weight) for weight in experts.down_proj]

    def products(self, rows: Tensor, rows_per_expert: Tensor) -> Tensor:
        """See `RowExperts.products`."""
        y = torch.empty_like(rows)
        first = 0
        for expert, count in enumerate(rows_per_expert.tolist()):
            if count:
                # oneDNN compiles a kernel for every number of rows that it meets. So rows of other
                # experts fill up to one of few numbers, and their results are dropped.
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
    """Return the next of few numbers of rows: at most an eighth more, or 7 rows."""
    step = 8
    while step * 16 < count:
        step *= 2
    return -(-count // step) * step


def is_prepackable(weight: Tensor) -> bool:
    """Say whether this weight can be prepacked on this machine, and becomes faster by it."""
    return (
        weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def prepack(model: nn.Module) -> None:
    """Prepack, in place, the weights of all linear maps and experts that become faster by it.

    Plain weights are dropped one by one. So the peak memory is that of the model and the experts of
    one layer.
    """
    for name, child in model.named_children():
        if isinstance(child, Experts) and is_prepackable(child.down_proj):
            setattr(model, name, PrepackedExperts(child))
        elif (
            isinstance(child, nn.Linear)
            and is_prepackable(child.weight)
            and name != NEVER_PREPACKED
        ):
            setattr(model, name, PrepackedLinear(child))
        else:
            prepack(child)
