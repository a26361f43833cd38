"""`TokenBatch`: what one step feeds the network.

Sequences stand one after another without padding. A sequence brings the tokens that are new in
this step: its prompt or a part of it in a prefill, one token in a decode. Its earlier tokens are in
the cache. Sequences whose tokens each attend to the cache alone (`num_paged`) come first: decodes,
and where a kernel makes it cheap, a few tokens behind a cached past.

Letters: T tokens of the step (0 is legal), B sequences, P tokens of the paged sequences, V vision
tokens of the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from model.network.kv_pieces import PagedContexts
from model.network.varlen import Spans


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """New tokens of B sequences. Lengths are on the host, so that no layer waits for the device."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, each token's place in its own sequence
    query_lens: tuple[int, ...]  # B, new tokens of each sequence; they sum to T
    context_lens: tuple[int, ...]  # B, tokens of each sequence after this step
    num_paged: int = 0  # sequences at the front whose tokens attend through `contexts`
    slots: Tensor | None = None  # [T] int64, cache slot of each new token; None: no cache
    contexts: PagedContexts | None = None  # of the first P tokens; its tables are those of all
    table_rows: tuple[int, ...] = ()  # B, the row of each sequence in the tables
    media_rows: Tensor | None = None  # [V] int64, rows whose embedding is an image feature

    def __post_init__(self) -> None:
        assert sum(self.query_lens) == len(self.token_ids) == len(self.positions)
        assert len(self.query_lens) == len(self.context_lens)
        assert (self.slots is None) == (self.contexts is None)
        assert self.slots is None or len(self.table_rows) == len(self.query_lens)
        assert self.contexts is None or len(self.contexts.lens) == self.num_paged_tokens
        assert self.num_paged == 0 or self.slots is not None

    @property
    def num_paged_tokens(self) -> int:
        """P, the tokens of the sequences at the front that attend through `contexts`."""
        return sum(self.query_lens[: self.num_paged])

    @cached_property
    def chunks(self) -> Spans:
        """The new tokens of the sequences behind the paged ones; each chunk attends to itself."""
        return Spans(self.query_lens[self.num_paged :], self.token_ids.device)


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
