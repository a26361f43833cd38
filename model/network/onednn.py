"""Makes products of bfloat16 weights fast on CPUs; `prepack` does it once, after loading.

Where the processor has bfloat16 products, weights are prepacked: reordered into the format in which
oneDNN multiplies fastest, and each plain weight is dropped as soon as its prepacked form exists.
Elsewhere they are widened: the weight stays, and a product of many rows turns it into float32, a
block at a time.

Other dtypes stay plain, also float32: prepacked, it makes the products of the published widths 1.1
to 1.6 times as fast, but the small ones of the demo checkpoint 0.9 times. Weights in training stay
plain too, because a prepacked weight has no gradient. Only this file uses torch's internal
operators for it.

Letters: D hidden size, F expert width, M rows that reach the local experts.
"""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.mlp import LinearGelu
from model.network.moe import Experts, RowExperts

# Absorbed attention reads this weight head by head, which the format of oneDNN does not allow.
NEVER_PREPACKED = "kv_b_proj"

# Measured at the published widths on a processor that was told to use AVX2 only. From 4 rows on,
# the float32 product and its conversions take less time than the bfloat16 product.
_WIDENED_FROM_ROWS = 4
_BLOCK_ROWS = 256  # of a weight that are float32 at once: 2 MiB for 2,048 inputs


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


class WidenedLinear(nn.Module):
    """Takes the place of an `nn.Linear` or a `LinearGelu`; its weight stays bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self._gelu = linear.approximate if isinstance(linear, LinearGelu) else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [..., inputs] to [..., outputs]."""
        product = widened_product(x, self.weight, self.bias)
        return product if self._gelu is None else F.gelu(product, approximate=self._gelu)


class WidenedExperts(RowExperts):
    """Takes the place of `Experts`; its weights stay bfloat16."""

    def __init__(self, experts: Experts) -> None:
        super().__init__(len(experts.rows_computed))
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj

    def products(self, rows: Tensor, rows_per_expert: Tensor) -> Tensor:
        """See `RowExperts.products`."""
        y = torch.empty_like(rows)
        first = 0
        for expert, count in enumerate(rows_per_expert.tolist()):
            own = slice(first, first + count)
            if count:
                gate, up = widened_product(rows[own], self.gate_up_proj[expert]).chunk(2, dim=-1)
                y[own] = widened_product(F.silu(gate) * up, self.down_proj[expert])
            first += count
        return y


def widened_product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Do `F.linear` for bfloat16 where the processor has no such products.

    `rows` [..., inputs] and blocks of `weight` [outputs, inputs] become float32; what they give is
    rounded once. Few rows take the plain product: reading the weight is what costs time then.
    """
    if rows.shape[:-1].numel() < _WIDENED_FROM_ROWS:
        return F.linear(rows, weight, bias)
    wide = rows.float()
    product = rows.new_empty(*rows.shape[:-1], len(weight))
    for first in range(0, len(weight), _BLOCK_ROWS):
        block = slice(first, first + _BLOCK_ROWS)
        own_bias = None if bias is None else bias[block].float()
        product[..., block] = F.linear(wide, weight[block].float(), own_bias)
    return product


def rounded_up(count: int) -> int:
    """Return the next of few numbers of rows: at most an eighth more, or 7 rows."""
    step = 8
    while step * 16 < count:
        step *= 2
    return -(-count // step) * step


def has_bfloat16_products() -> bool:
    """Say whether this processor multiplies bfloat16 numbers by instructions of its own.

    Without them a product takes 2.5 to 6 times as long as in float32. The answer of oneDNN alone is
    not enough: on x86 it says yes for every processor with AVX-512, and emulates what is missing.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # Every processor with AMX has these instructions too.
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not is_x86 or torch.cpu._is_avx512_bf16_supported()


def is_prepackable(weight: Tensor) -> bool:
    """Say whether this weight can be prepacked on this machine, and becomes faster by it."""
    return _is_bfloat16_on_cpu(weight) and has_bfloat16_products()


def _is_bfloat16_on_cpu(weight: Tensor) -> bool:
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu"


def prepack(model: nn.Module) -> None:
    """Replace, in place, all linear maps and experts whose products become faster by it.

    Plain weights of prepacked ones are dropped one by one. So the peak memory is that of the model
    and the experts of one layer.
    """
    for name, child in model.named_children():
        fast = _replacement(name, child)
        if fast is None:
            prepack(child)
        else:
            setattr(model, name, fast)


def _replacement(name: str, child: nn.Module) -> nn.Module | None:
    """Return what multiplies faster than this module; None if nothing does."""
    if isinstance(child, Experts) and _is_bfloat16_on_cpu(child.down_proj):
        return PrepackedExperts(child) if has_bfloat16_products() else WidenedExperts(child)
    if isinstance(child, nn.Linear) and _is_bfloat16_on_cpu(child.weight):
        if not has_bfloat16_products():
            return WidenedLinear(child)
        return None if name == NEVER_PREPACKED else PrepackedLinear(child)
    return None
