"""`LatentCache`: the latent kv of every token, in blocks of slots.

Multi-head latent attention caches `kv_lora_rank + qk_rope_head_dim` numbers for each token and
layer (DeepSeek-V2, arXiv 2405.04434, section 2.1). In Kimi-VL these are 576, or 31,104 bytes per
token over its 27 layers in bfloat16. Plain multi-head attention caches its keys and values.

`kv_pieces` and `model.engine.blocks.BlockPool` know which slot belongs to which token.
"""

import torch

from model.config import BLOCK_SIZE, TextConfig


def cache_width(config: TextConfig) -> int:
    """Return how many numbers one layer caches for one token."""
    if config.kv_lora_rank is None:
        return 2 * config.num_key_value_heads * config.v_head_dim
    return config.kv_lora_rank + config.qk_rope_head_dim


class LatentCache:
    """Storage for the blocks 0 to `num_blocks` (at least 1); no sequence owns block 0."""

    def __init__(
        self, config: TextConfig, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        if num_blocks < 1:
            raise ValueError(f"a cache needs at least one block, got {num_blocks}")
        self.num_blocks = num_blocks
        num_slots = (num_blocks + 1) * BLOCK_SIZE
        self.layers = tuple(
            torch.empty(num_slots, cache_width(config), dtype=dtype, device=device)
            for _ in range(config.num_hidden_layers)
        )
        for layer in self.layers:
            layer[:1].zero_()  # what is read behind the end of a context; it must be finite

    @staticmethod
    def block_bytes(config: TextConfig, dtype: torch.dtype) -> int:
        """Return the bytes of one block over all layers."""
        return BLOCK_SIZE * cache_width(config) * config.num_hidden_layers * dtype.itemsize
