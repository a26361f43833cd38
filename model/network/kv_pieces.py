"""Where the context of each sequence lies in the cache.

A slot is the place of one token: slot = block * BLOCK_SIZE + offset. Contexts of very different
lengths are read side by side in pieces of equal length, so that none is padded to the longest.

Letters: B queries, N pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from model.config import BLOCK_SIZE

PIECE_LEN = 256  # tokens; docs/benchmarks-history.md, "Products and attention"


@dataclass(frozen=True)
class Pieces:
    """The contexts of B queries, cut into pieces; the pieces of a context stand together."""

    owners: Tensor  # [N] int64, the query of each piece
    places: Tensor  # [N] int64, the number of each piece within its context
    most: int  # the largest number of pieces of a context
    slots: Tensor  # [N, PIECE_LEN] int64; behind the end of a context slot 0, which stays zero
    is_context: Tensor  # [N, PIECE_LEN] bool; False behind the end of a context


@dataclass(frozen=True)
class PagedContexts:
    """The cached contexts of B queries, each of which is one token.

    `tables` are those of all running sequences. So they can stay on the device from step to step,
    and several queries of one sequence can share its table. Several queries of one sequence differ
    by the length that they see.
    """

    tables: Tensor  # [rows, blocks] int32, the blocks of each sequence, padded with 0
    rows: Tensor  # [B] int32, the table of each query
    lens: Tensor  # [B] int32, how many tokens each query sees; at least 1

    @cached_property
    def pieces(self) -> Pieces:
        """The contexts in pieces, cut once for all layers. This waits for the device."""
        return pieces_of(self.tables[self.rows], self.lens.tolist())


def pieces_of(block_tables: Tensor, lens: Sequence[int]) -> Pieces:
    """Cut the contexts in `block_tables` [B, blocks] into pieces; each length is at least 1."""
    device = block_tables.device
    counts = [-(-length // PIECE_LEN) for length in lens]
    numbers = [(owner, place) for owner, count in enumerate(counts) for place in range(count)]
    owners, places = torch.tensor(numbers, device=device).T.contiguous()
    ends = torch.tensor(lens, device=device)[owners, None]  # [N, 1]
    positions = places[:, None] * PIECE_LEN + torch.arange(PIECE_LEN, device=device)
    is_context = positions < ends
    blocks = block_tables[owners[:, None], positions.minimum(ends - 1) // BLOCK_SIZE]
    slots = blocks.long() * BLOCK_SIZE + positions % BLOCK_SIZE
    return Pieces(owners, places, max(counts), slots.where(is_context, 0), is_context)


def slots_of(block_table: Tensor, length: int) -> Tensor:
    """Return the slots [length] int64 of the first tokens of one sequence's table [blocks]."""
    position = torch.arange(length, device=block_table.device)
    return block_table[position // BLOCK_SIZE].long() * BLOCK_SIZE + position % BLOCK_SIZE
