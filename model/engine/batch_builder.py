"""Makes one `TokenBatch` of the chunks of a step. Letter: B sequences."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import BLOCK_SIZE
from model.engine.scheduler import Chunk
from model.network.batch import TokenBatch


def batch_of(chunks: Sequence[Chunk], media_token_id: int, device: torch.device) -> TokenBatch:
    """Make the batch of `chunks`, decodes first; without chunks it has no tokens.

    The sequences already own the blocks for their chunks. Image features overwrite the pads of
    prompts, whose id is `media_token_id`.
    """

    def tensor(values: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(device)

    token_ids = [chunk.sequence.token_ids(chunk.start, chunk.end) for chunk in chunks]
    is_media = _concatenated([_is_media(chunk, media_token_id) for chunk in chunks])
    return TokenBatch(
        token_ids=tensor(_concatenated(token_ids)),
        positions=tensor(_concatenated([np.arange(chunk.start, chunk.end) for chunk in chunks])),
        query_lens=tuple(chunk.end - chunk.start for chunk in chunks),
        context_lens=tuple(chunk.end for chunk in chunks),
        num_decodes=sum(chunk.is_decode for chunk in chunks),
        slots=tensor(_concatenated([_slots(chunk) for chunk in chunks])),
        block_tables=tensor(_block_tables(chunks)),
        media_rows=tensor(np.flatnonzero(is_media)),
    )


def _is_media(chunk: Chunk, media_token_id: int) -> NDArray[np.bool_]:
    """Mark the media pads of the prompt; a generated token is text, even with the id of a pad."""
    pads = chunk.sequence.token_ids(chunk.start, chunk.end) == media_token_id
    pads[max(0, len(chunk.sequence.prompt.token_ids) - chunk.start) :] = False
    return pads


def _slots(chunk: Chunk) -> NDArray[np.int64]:
    position = np.arange(chunk.start, chunk.end)
    blocks = np.asarray(chunk.sequence.blocks, np.int64)
    return blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE


def _block_tables(chunks: Sequence[Chunk]) -> NDArray[np.int64]:
    """Return the blocks of each sequence [B, most blocks], padded with 0."""
    longest = max((len(chunk.sequence.blocks) for chunk in chunks), default=0)
    tables = np.zeros((len(chunks), longest), np.int64)
    for table, chunk in zip(tables, chunks, strict=True):
        table[: len(chunk.sequence.blocks)] = chunk.sequence.blocks
    return tables


def _concatenated(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate arrays; no arrays give an empty one, which numpy would refuse."""
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
