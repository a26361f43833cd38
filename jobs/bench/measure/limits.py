"""Measure the limits of this machine: bare products of given shapes, and memory reads.

Decoding is bound by memory: a step must read every expert that any of its tokens chose, and the
head. Prefill and images are bound by arithmetic. In both cases the limit is the time of the bare
products with the same matrices, in the layout in which this machine multiplies fastest.

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

# Matrices are used in turn; this many exceed the cache of a processor.
_MOST_MATRICES = 64
_READ_BYTES = 1 << 30


class BareProducts:
    """Bare bfloat16 products of given shapes, on matrices of their own."""

    def __init__(self, products: Sequence[Product]) -> None:
        self._works = [(each, *_operands(each)) for each in products if each.count]

    @property
    def flops(self) -> float:
        """Floating point operations of all products."""
        return sum(product.flops for product, _, _ in self._works)

    def seconds(self) -> float:
        """Measure all products now; of many equal ones, some are measured and scaled."""
        total = 0.0
        for product, rows, multiplications in self._works:
            took = timed(lambda rows=rows, them=multiplications: [each(rows) for each in them])
            total += took * product.count / len(multiplications)
        return total


def _operands(product: Product) -> tuple[Tensor, list[Callable[[Tensor], Tensor]]]:
    """Make [rows, inputs], and products with as many matrices as needed, up to a limit."""
    rows = torch.full((product.rows, product.inputs), 0.5, dtype=torch.bfloat16)
    plain = torch.full((product.outputs, product.inputs), 0.5, dtype=torch.bfloat16)
    number = min(ceil(product.count), _MOST_MATRICES)
    if is_prepackable(plain):
        return rows, [PrepackedMatrix(plain).product for _ in range(number)]
    return rows, [partial(F.linear, weight=plain.clone()) for _ in range(number)]


class MemoryRead:
    """Reads a gibibyte of memory."""

    def __init__(self) -> None:
        self._memory = torch.ones(_READ_BYTES // 8, dtype=torch.int64)

    def bytes_per_s(self, readings: int = 3) -> float:
        """Measure the rate now: the best of some readings."""
        return _READ_BYTES / min(timed(self._memory.sum) for _ in range(readings))
