"""`LatentCache`: what the decoder remembers of every token, in blocks that sequences own.

Multi-head latent attention remembers `kv_lora_rank + qk_rope_head_dim` numbers for each token and
layer (DeepSeek-V2, arXiv 2405.04434, section 2.1): 576 in Kimi-VL, 31,104 bytes a token over its 27
layers in bfloat16. Plain multi-head attention remembers its keys and values.

A slot is one token's place: slot = block * BLOCK_SIZE + offset. Block 0 is never given to a
sequence, so padded block tables point at memory that exists and that nobody reads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import TextConfig

BLOCK_SIZE = 16  # tokens


def cache_width(config: TextConfig) -> int:
    """Numbers that one layer remembers of one token."""
    if config.kv_lora_rank is None:
        return 2 * config.num_key_value_heads * config.v_head_dim
    return config.kv_lora_rank + config.qk_rope_head_dim


def blocks_for(num_tokens: int) -> int:
    """Blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // BLOCK_SIZE)


class LatentCache:
    """Storage for `num_blocks` blocks and the list of those that are free.

    Args:
        config: gives the width and the number of layers.
        num_blocks: blocks for sequences, beside the reserved block 0.
        dtype: of the remembered numbers.
        device: where they lie.
    """

    def __init__(
        self, config: TextConfig, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        if num_blocks < 1:
            raise ValueError(f"a cache needs at least one block, got {num_blocks}")
        num_slots = (num_blocks + 1) * BLOCK_SIZE
        # Zeroed, because a masked slot still enters a product with weight 0: 0 * nan is nan.
        self.layers = tuple(
            torch.zeros(num_slots, cache_width(config), dtype=dtype, device=device)
            for _ in range(config.num_hidden_layers)
        )
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks, 0, -1))

    @staticmethod
    def block_bytes(config: TextConfig, dtype: torch.dtype) -> int:
        """Bytes of one block over all layers."""
        return BLOCK_SIZE * cache_width(config) * config.num_hidden_layers * dtype.itemsize

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence owns."""
        return len(self._free)

    def take(self, num_blocks: int) -> list[int]:
        """Give `num_blocks` blocks to a sequence; the caller has checked that they are free."""
        assert num_blocks <= len(self._free)
        return [self._free.pop() for _ in range(num_blocks)]

    def give_back(self, blocks: Sequence[int]) -> None:
        """Make the blocks of a finished sequence free."""
        assert not set(blocks) & set(self._free)
        self._free.extend(reversed(blocks))


def slots_of(block_tables: Tensor, length: int) -> Tensor:
    """The slots of the first `length` tokens of each sequence.

    Args:
        block_tables: [B, blocks] int64.
        length: at most blocks * BLOCK_SIZE.

    Returns:
        [B, length] int64.
    """
    position = torch.arange(length, device=block_tables.device)
    return block_tables[:, position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
