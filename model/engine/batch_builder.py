"""The chunks of a step as one `TokenBatch`.

Letters: T tokens of the step, B sequences.
"""

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
    """What the network computes for `chunks`, decodes first; none make a batch of no tokens.

    Args:
        chunks: of sequences that own blocks for them.
        media_token_id: the pad that image features overwrite, where it stands in a prompt.
        device: of the batch's tensors.
    """

    def tensor(values: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(device)

    token_ids = [chunk.sequence.token_ids(chunk.start, chunk.end) for chunk in chunks]
    is_media = _joined([_is_media(chunk, media_token_id) for chunk in chunks])
    return TokenBatch(
        token_ids=tensor(_joined(token_ids)),
        positions=tensor(_joined([np.arange(chunk.start, chunk.end) for chunk in chunks])),
        query_lens=tuple(chunk.end - chunk.start for chunk in chunks),
        context_lens=tuple(chunk.end for chunk in chunks),
        num_decodes=sum(chunk.is_decode for chunk in chunks),
        slots=tensor(_joined([_slots(chunk) for chunk in chunks])),
        block_tables=tensor(_block_tables(chunks)),
        media_rows=tensor(np.flatnonzero(is_media)),
    )


def _is_media(chunk: Chunk, media_token_id: int) -> NDArray[np.bool_]:
    """Which tokens of a chunk are pads of the prompt; generated ones are text."""
    pads = chunk.sequence.token_ids(chunk.start, chunk.end) == media_token_id
    pads[max(0, len(chunk.sequence.prompt.token_ids) - chunk.start) :] = False
    return pads


def _slots(chunk: Chunk) -> NDArray[np.int64]:
    """Places of a chunk's tokens in the cache."""
    position = np.arange(chunk.start, chunk.end)
    blocks = np.asarray(chunk.sequence.blocks, np.int64)
    return blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE


def _block_tables(chunks: Sequence[Chunk]) -> NDArray[np.int64]:
    """The blocks of each sequence [B, most blocks], padded with 0."""
    longest = max((len(chunk.sequence.blocks) for chunk in chunks), default=0)
    tables = np.zeros((len(chunks), longest), np.int64)
    for table, chunk in zip(tables, chunks, strict=True):
        table[: len(chunk.sequence.blocks)] = chunk.sequence.blocks
    return tables


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One array of many, or of none."""
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
