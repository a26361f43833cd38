"""What this machine allows: bare products of a work's shapes, and reading of memory.

Decoding is bound by memory: a step must read every expert that any of its tokens chose, and the
head. Prefill and images are bound by arithmetic. Either way the limit is the time of the bare
products over the same matrices, in the layout in which this machine multiplies fastest.

Letters: D hidden size, F expert width, E routed experts, K experts per token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.bench.turns import timed
from model.config import TextConfig, VisionConfig
from model.packed import PackedMatrix, is_packable
from model.vision import Grid

# More than a processor's cache, where there are that many: matrices are multiplied in turn.
_MOST_MATRICES = 64
_READ_BYTES = 1 << 30


@dataclass(frozen=True)
class Product:
    """`count` products of [rows, inputs] with a matrix [outputs, inputs] each."""

    rows: int
    outputs: int
    inputs: int
    count: float = 1

    @property
    def flops(self) -> float:
        """Floating point operations of all of them."""
        return 2 * self.count * prod((self.rows, self.outputs, self.inputs))

    @property
    def matrix_bytes(self) -> float:
        """Of all matrices, in bfloat16."""
        return 2 * self.count * self.outputs * self.inputs


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
    if is_packable(plain):
        return rows, [PackedMatrix(plain).product for _ in range(number)]
    return rows, [partial(F.linear, weight=plain.clone()) for _ in range(number)]


class MemoryRead:
    """Reads a gibibyte."""

    def __init__(self) -> None:
        self._memory = torch.ones(_READ_BYTES // 8, dtype=torch.int64)

    def bytes_per_s(self, readings: int = 3) -> float:
        """The best rate of some readings, now."""
        return _READ_BYTES / min(timed(self._memory.sum) for _ in range(readings))


def expert_products(text: TextConfig, num_tokens: int, num_touched: float) -> list[Product]:
    """Of all layers with routed experts, when `num_tokens` choose `num_touched` in a layer."""
    layers = sum(map(text.is_moe_layer, range(text.num_hidden_layers)))
    rows = max(1, round(num_tokens * text.num_experts_per_tok / max(1, num_touched)))
    width, hidden = text.moe_intermediate_size, text.hidden_size
    return [
        Product(rows, 2 * width, hidden, layers * num_touched),
        Product(rows, hidden, width, layers * num_touched),
    ]


def head_product(text: TextConfig, num_rows: int) -> Product:
    """The logits of `num_rows` tokens."""
    return Product(num_rows, text.vocab_size, text.hidden_size)


def dense_products(text: TextConfig, num_tokens: int) -> list[Product]:
    """What every token passes: attention's maps, dense layers and shared experts."""
    hidden, heads, layers = text.hidden_size, text.num_attention_heads, text.num_hidden_layers
    latent = text.kv_lora_rank or 0
    num_moe = sum(map(text.is_moe_layer, range(layers)))
    shared_width = text.moe_intermediate_size * text.n_shared_experts
    return [
        Product(num_tokens, heads * text.qk_head_dim, hidden, layers),
        Product(num_tokens, latent + text.qk_rope_head_dim, hidden, layers),
        Product(num_tokens, heads * (text.qk_nope_head_dim + text.v_head_dim), latent, layers),
        Product(num_tokens, hidden, heads * text.v_head_dim, layers),
        Product(num_tokens, 2 * text.intermediate_size, hidden, layers - num_moe),
        Product(num_tokens, hidden, text.intermediate_size, layers - num_moe),
        Product(num_tokens, 2 * shared_width, hidden, num_moe),
        Product(num_tokens, hidden, shared_width, num_moe),
    ]


def vision_products(
    vision: VisionConfig, hidden_size: int, grid: Grid, num_images: int
) -> list[Product]:
    """MoonViT and projector for equal images: the maps, and two products an image and head."""
    width, layers, length = vision.hidden_size, vision.num_hidden_layers, grid[0] * grid[1]
    patches, tokens, merged = num_images * length, num_images * length // 4, 4 * width
    heads = layers * vision.num_attention_heads * num_images
    return [
        Product(patches, width, 3 * vision.patch_size**2),
        Product(patches, 3 * width, width, layers),
        Product(length, length, vision.head_dim, heads),
        Product(length, vision.head_dim, length, heads),
        Product(patches, width, width, layers),
        Product(patches, vision.intermediate_size, width, layers),
        Product(patches, width, vision.intermediate_size, layers),
        Product(tokens, merged, merged),
        Product(tokens, hidden_size, merged),
    ]
