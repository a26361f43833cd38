"""List the matrix products of a step, by their sizes."""

from dataclasses import dataclass
from math import prod

from model.config import TextConfig, VisionConfig
from model.network.vision import Grid


@dataclass(frozen=True)
class Product:
    """`count` products, each of [rows, inputs] with a matrix [outputs, inputs] of its own."""

    rows: int
    outputs: int
    inputs: int
    count: float = 1

    @property
    def flops(self) -> float:
        """Floating point operations of all products."""
        return 2 * self.count * prod((self.rows, self.outputs, self.inputs))

    @property
    def matrix_bytes(self) -> float:
        """Bytes of all matrices in bfloat16."""
        return 2 * self.count * self.outputs * self.inputs


def expert_products(text: TextConfig, num_tokens: int, num_touched: float) -> list[Product]:
    """List the products of routed experts in all layers, if tokens use `num_touched` per layer."""
    layers = sum(map(text.is_moe_layer, range(text.num_hidden_layers)))
    rows = max(1, round(num_tokens * text.num_experts_per_tok / max(1, num_touched)))
    width, hidden = text.moe_intermediate_size, text.hidden_size
    return [
        Product(rows, 2 * width, hidden, layers * num_touched),
        Product(rows, hidden, width, layers * num_touched),
    ]


def head_product(text: TextConfig, num_rows: int) -> Product:
    """Return the product that computes the logits of `num_rows` tokens."""
    return Product(num_rows, text.vocab_size, text.hidden_size)


def dense_products(text: TextConfig, num_tokens: int) -> list[Product]:
    """List the products of every token: attention projections, dense layers, shared experts."""
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
    """List the products of MoonViT and projector for equal images: projections and attention."""
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
