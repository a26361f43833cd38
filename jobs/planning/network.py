"""Compute what the steps of a network compute, read and send, from its configuration alone.

Letters: T tokens of a rank's step, R ranks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import comb, prod

from jobs.planning.products import Product, dense_products, head_product, vision_products
from model.config import KimiVLConfig
from model.network.weights import destinations

BF16_BYTES = 2
_PLACE_AND_WEIGHT_BYTES = 8  # sent with a row for each expert (parallel/experts/wire.py)


@dataclass(frozen=True)
class Work:
    """Floating point operations, and bytes of memory that must be read at least once."""

    flops: float
    num_bytes: float


@dataclass(frozen=True)
class Network:
    """The network of a checkpoint, in bfloat16."""

    config: KimiVLConfig

    @cached_property
    def num_parameters(self) -> int:
        """Number of all parameters."""
        return sum(prod(target.shape) for target in destinations(self.config).values())

    @property
    def num_expert_parameters(self) -> int:
        """Number of parameters of one routed expert: gate, up and down."""
        return 3 * self.config.text.hidden_size * self.config.text.moe_intermediate_size

    @property
    def num_moe_layers(self) -> int:
        """Number of layers with routed experts."""
        text = self.config.text
        return sum(map(text.is_moe_layer, range(text.num_hidden_layers)))

    def weights_bytes(self, num_ranks: int, num_copies: int = 0) -> int:
        """Return the bytes of weights on one rank: the shared ones and its experts."""
        num_experts = self.config.text.n_routed_experts
        one_each = self.num_moe_layers * self.num_expert_parameters
        held = num_experts // num_ranks + num_copies
        return BF16_BYTES * (self.num_parameters - (num_experts - held) * one_each)

    @property
    def cache_bytes(self) -> int:
        """Bytes of one token in the cache, over all layers."""
        text = self.config.text
        width = 2 * text.num_key_value_heads * text.qk_head_dim
        if text.kv_lora_rank is not None:
            width = text.kv_lora_rank + text.qk_rope_head_dim
        return BF16_BYTES * text.num_hidden_layers * width

    def dense(self, num_tokens: float) -> Work:
        """Return the work of attention projections, shared experts and dense layers."""
        return _work(dense_products(self.config.text, max(1, round(num_tokens))))

    def head(self, num_rows: float) -> Work:
        """Return the work of computing logits."""
        return _work([head_product(self.config.text, max(1, round(num_rows)))])

    def experts(self, num_tokens: float, num_ranks: int, num_copies: int = 0) -> Work:
        """Return the work of a rank's experts in one layer, if each of R ranks has T tokens."""
        text = self.config.text
        if not self.num_moe_layers:
            return Work(0.0, 0.0)
        held = text.n_routed_experts / num_ranks + num_copies
        unseen = (1 - text.num_experts_per_tok / text.n_routed_experts) ** (num_ranks * num_tokens)
        rows = num_tokens * text.num_experts_per_tok
        return Work(
            2 * rows * self.num_expert_parameters,
            held * (1 - unseen) * self.num_expert_parameters * BF16_BYTES,
        )

    def attention(self, num_tokens: float, context_len: float, *, is_decode: bool) -> Work:
        """Return the work of attention: absorbed for decodes, expanded for prompts."""
        text = self.config.text
        pairs = num_tokens * context_len * text.num_hidden_layers * text.num_attention_heads
        width = text.qk_head_dim + text.v_head_dim
        if text.kv_lora_rank is not None and is_decode:
            width = 2 * text.kv_lora_rank + text.qk_rope_head_dim
        read = num_tokens if is_decode else 1
        return Work(2 * pairs * width, read * context_len * self.cache_bytes)

    def vision(self, num_tokens: float, frame_tokens: int) -> Work:
        """Return the work of MoonViT and projector for square frames of `frame_tokens` each."""
        config = self.config
        side = 2 * max(1, round(frame_tokens**0.5))
        work = _work(vision_products(config.vision, config.text.hidden_size, (side, side), 1))
        num_frames = num_tokens / (side * side / 4)
        return Work(work.flops * num_frames, work.num_bytes)

    def rows_sent(self, num_ranks: int) -> float:
        """Return to how many other ranks a token's row is sent, for uniform choices."""
        text = self.config.text
        return least_rows(text.n_routed_experts, text.num_experts_per_tok, num_ranks)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row to an expert and back."""
        text = self.config.text
        there = BF16_BYTES * text.hidden_size + _PLACE_AND_WEIGHT_BYTES * text.num_experts_per_tok
        return there + BF16_BYTES * text.hidden_size


def _work(products: Iterable[Product]) -> Work:
    counted = list(products)
    return Work(sum(each.flops for each in counted), sum(each.matrix_bytes for each in counted))


def least_rows(num_experts: int, top_k: int, num_ranks: int) -> float:
    """Return how many other ranks hold an expert of a token, on average over uniform choices."""
    elsewhere = num_experts - num_experts // num_ranks
    none = comb(elsewhere, top_k) / comb(num_experts, top_k)
    return (num_ranks - 1) * (1 - none)
