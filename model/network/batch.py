"""`TokenBatch`: what one step feeds the network.

Sequences stand one after another without padding. A sequence brings the tokens that are new in
this step: its prompt or a part of it in a prefill, one token in a decode. Its earlier tokens are in
the cache, where `block_tables` says. Decodes come first.

Letters: T tokens of the step (0 is legal), B sequences, V vision tokens of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from model.network.kv_pieces import Pieces, pieces_of


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """New tokens of B sequences. Lengths are on the host, so that no layer waits for the device."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, each token's place in its own sequence
    query_lens: tuple[int, ...]  # B, new tokens of each sequence; they sum to T
    context_lens: tuple[int, ...]  # B, tokens of each sequence after this step
    num_decodes: int = 0  # sequences at the front that bring one token to a cached context
    slots: Tensor | None = None  # [T] int64, cache slot of each new token; None: no cache
    block_tables: Tensor | None = None  # [B, blocks] int64, padded with 0
    pieces: Pieces | None = None  # of the decodes' contexts; None: of `block_tables`
    media_rows: Tensor | None = None  # [V] int64, rows whose embedding is an image feature

    def __post_init__(self) -> None:
        assert sum(self.query_lens) == len(self.token_ids) == len(self.positions)
        assert len(self.query_lens) == len(self.context_lens)
        assert (self.slots is None) == (self.block_tables is None)
        assert self.query_lens[: self.num_decodes] == (1,) * self.num_decodes
        assert self.num_decodes == 0 or self.slots is not None

    @property
    def last_rows(self) -> list[int]:
        """The row of the last token of each sequence, which predicts the next token."""
        return [end - 1 for end in accumulate(self.query_lens)]

    @cached_property
    def decode_pieces(self) -> Pieces:
        """The contexts of the decodes, cut once for all layers."""
        if self.pieces is not None:
            return self.pieces
        assert self.block_tables is not None
        num = self.num_decodes
        return pieces_of(self.block_tables[:num], self.context_lens[:num])


def whole_sequences(
    token_ids: Sequence[Sequence[int]], media_token_id: int | None = None
) -> TokenBatch:
    """Make a batch without cache: whole sequences, for training and as a reference in tests."""
    lens = tuple(len(ids) for ids in token_ids)
    flat = torch.tensor([token for ids in token_ids for token in ids], dtype=torch.int64)
    positions = [torch.arange(length) for length in lens]
    return TokenBatch(
        token_ids=flat,
        positions=torch.cat(positions) if positions else flat,
        query_lens=lens,
        context_lens=lens,
        media_rows=None if media_token_id is None else (flat == media_token_id).nonzero()[:, 0],
    )
