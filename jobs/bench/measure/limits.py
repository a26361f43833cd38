"""What this machine allows: bare products of a work's shapes, and reading of memory.

Decoding is bound by memory: a step must read every expert that any of its tokens chose, and the
head. Prefill and images are bound by arithmetic. Either way the limit is the time of the bare
products over the same matrices, in the layout in which this machine multiplies fastest.

Letters: D hidden size, F expert width, E routed experts, K experts per token.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.bench.measure.turns import timed
from jobs.planning.products import Product
from model.network.onednn import PrepackedMatrix, is_prepackable

# More than a processor's cache, where there are that many: matrices are multiplied in turn.
_MOST_MATRICES = 64
_READ_BYTES = 1 << 30


class BareProducts:
    """The products of a work and nothing else, in bfloat16, on matrices of their own."""

    def __init__(self, products: Sequence[Product]) -> None:
        self._works = [(each, *_operands(each)) for each in products if each.count]

    @property
    def flops(self) -> float:
        """Floating point operations of the work."""
        return sum(product.flops for product, _, _ in self._works)

    def seconds(self) -> float:
        """How long the work's products take now; of many equal ones a part is done and scaled."""
        total = 0.0
        for product, rows, multiplications in self._works:
            took = timed(lambda rows=rows, them=multiplications: [each(rows) for each in them])
            total += took * product.count / len(multiplications)
        return total


def _operands(product: Product) -> tuple[Tensor, list[Callable[[Tensor], Tensor]]]:
    """[rows, inputs], and products with as many matrices as the work has, up to a number."""
    rows = torch.full((product.rows, product.inputs), 0.5, dtype=torch.bfloat16)
    plain = torch.full((product.outputs, product.inputs), 0.5, dtype=torch.bfloat16)
    number = min(ceil(product.count), _MOST_MATRICES)
    if is_prepackable(plain):
        return rows, [PrepackedMatrix(plain).product for _ in range(number)]
    return rows, [partial(F.linear, weight=plain.clone()) for _ in range(number)]


class MemoryRead:
    """Reads a gibibyte."""

    def __init__(self) -> None:
        self._memory = torch.ones(_READ_BYTES // 8, dtype=torch.int64)

    def bytes_per_s(self, readings: int = 3) -> float:
        """The best rate of some readings, now."""
        return _READ_BYTES / min(timed(self._memory.sum) for _ in range(readings))
