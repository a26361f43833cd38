"""The chunks of a step -> `TokenBatch`. All numbers of a step come to the device in one copy.

`BatchBuilder.on_host` works on the host alone. `upload` copies, and updates the block tables of the
running sequences, which stay on the device: a step sends only the blocks that are new.

A sequence may be computed before the host knows its last token (`Sequence.num_pending`). That token
is still on the device, among those that the step before has sampled, and is put in its place there.

Letters: T tokens, P tokens of paged sequences, n sequences that sample a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import BLOCK_SIZE
from model.engine.sampling import Draws
from model.engine.scheduler import Chunk
from model.engine.transfer import to_device
from model.network.batch import TokenBatch
from model.network.kv_pieces import PagedContexts

# Padding writes its kv to slot 1. It is in block 0, which no sequence owns. The table in row 0 has
# only this block.
_PADDING = {"token_ids": 0, "positions": 1, "slots": 1, "paged_rows": 0, "paged_lens": 1}


@dataclass(frozen=True)
class HostStep:
    """The numbers of a step, on the host."""

    numbers: dict[str, NDArray[np.int64]]
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    table_rows: tuple[int, ...]
    num_paged: int  # sequences
    draws: Draws

    @property
    def num_tokens(self) -> int:
        """T, the tokens of the step."""
        return len(self.numbers["token_ids"])


@dataclass(frozen=True)
class DeviceStep:
    """The same numbers on the device."""

    batch: TokenBatch
    logit_rows: Tensor  # [n] int64, the tokens whose logits give the next token
    draws: Tensor  # see `Draws.numbers`


class BatchBuilder:
    """Makes the batches of an engine, and holds the block tables of its sequences.

    `num_rows` is the greatest number of sequences, `num_blocks` that of the blocks of one. Up to
    `max_paged_len` tokens behind a cached past attend to the cache alone.
    """

    def __init__(
        self,
        media_token_id: int,
        num_rows: int,
        num_blocks: int,
        device: torch.device,
        max_paged_len: int = 1,
    ) -> None:
        self._media_token_id = media_token_id
        self._max_paged_len = max_paged_len
        self._device = device
        # Row 0 stays zero: it is the table of padding.
        self.tables = torch.zeros(num_rows + 1, num_blocks, dtype=torch.int32, device=device)

    def on_host(self, chunks: Sequence[Chunk]) -> tuple[HostStep, list[Chunk]]:
        """Collect the numbers of `chunks`; return the chunks too, in the order of the batch.

        Without chunks the step has no tokens. The sequences already own the blocks for them.
        """
        paged = [chunk for chunk in chunks if self._is_paged(chunk)]
        ordered = [*paged, *(chunk for chunk in chunks if not self._is_paged(chunk))]
        draws = Draws.of([chunk.sequence for chunk in ordered if chunk.is_last])
        numbers = _tokens(ordered, self._media_token_id) | {
            "paged_rows": np.repeat(
                np.array([chunk.sequence.table_row for chunk in paged], np.int64),
                np.array([chunk.end - chunk.start for chunk in paged], np.int64),
            ),
            "paged_lens": _concatenated([np.arange(c.start, c.end) for c in paged]) + 1,
            **self._new_blocks(ordered),
            **_pending(ordered),
            "draws": draws.numbers.view(np.int64).ravel(),
        }
        step = HostStep(
            numbers,
            query_lens=tuple(chunk.end - chunk.start for chunk in ordered),
            context_lens=tuple(chunk.end for chunk in ordered),
            table_rows=tuple(chunk.sequence.table_row for chunk in ordered),
            num_paged=len(paged),
            draws=draws,
        )
        return step, ordered

    def upload(
        self, step: HostStep, sampled: Tensor | None = None, size: int | None = None
    ) -> DeviceStep:
        """Bring a step to the device, and update the block tables there.

        `sampled` are the tokens [n] of the step before, for sequences whose last token is pending.
        `size` fills a step of decodes up to so many sequences, whose results mean nothing.
        """
        missing = 0 if size is None else size - step.num_tokens
        numbers = step.numbers
        if missing:
            padding = {name: np.full(missing, value) for name, value in _PADDING.items()}
            numbers = numbers | {
                name: np.concatenate((numbers[name], values)) for name, values in padding.items()
            }
        parts = to_device(np.concatenate(list(numbers.values())), self._device)
        sections = parts.split([len(part) for part in numbers.values()])
        on_device = dict(zip(numbers, sections, strict=True))
        if len(numbers["table_places"]):
            blocks = on_device["table_blocks"].int()
            self.tables.view(-1).index_copy_(0, on_device["table_places"], blocks)
        if len(numbers["pending_rows"]):
            assert sampled is not None
            known = sampled.index_select(0, on_device["pending_sampled"])
            on_device["token_ids"].index_copy_(0, on_device["pending_rows"], known)
        batch = TokenBatch(
            token_ids=on_device["token_ids"],
            positions=on_device["positions"],
            query_lens=step.query_lens + (1,) * missing,
            context_lens=step.context_lens + (1,) * missing,
            num_paged=step.num_paged + missing,
            slots=on_device["slots"],
            contexts=PagedContexts(
                self.tables, on_device["paged_rows"].int(), on_device["paged_lens"].int()
            ),
            table_rows=step.table_rows + (0,) * missing,
            media_rows=on_device["media_rows"],
        )
        draws = on_device["draws"].view(torch.float64).view(step.draws.numbers.shape)
        return DeviceStep(batch, on_device["logit_rows"], draws)

    def _is_paged(self, chunk: Chunk) -> bool:
        return chunk.start > 0 and chunk.end - chunk.start <= self._max_paged_len

    def _new_blocks(self, chunks: Sequence[Chunk]) -> dict[str, NDArray[np.int64]]:
        """List the blocks that the tables on the device lack, and their places there."""
        places: list[int] = []
        blocks: list[int] = []
        for sequence in (chunk.sequence for chunk in chunks):
            known, count = sequence.num_blocks_on_device, len(sequence.blocks)
            if known < count:
                first = sequence.table_row * self.tables.shape[1]
                places += range(first + known, first + count)
                blocks += sequence.blocks[known:]
                sequence.num_blocks_on_device = count
        return {
            "table_places": np.array(places, np.int64),
            "table_blocks": np.array(blocks, np.int64),
        }


def _tokens(chunks: Sequence[Chunk], media_token_id: int) -> dict[str, NDArray[np.int64]]:
    """Return the ids, positions and slots of all tokens, and the rows of media pads.

    A generated token is text, even with the id of a pad.
    """
    ids, positions, slots, is_media = [], [], [], []
    for chunk in chunks:
        sequence, start, end = chunk.sequence, chunk.start, chunk.end
        if chunk.is_decode:  # by far the most chunks: without an array for each
            token_id, block = sequence.token_id(start), sequence.blocks[start // BLOCK_SIZE]
            ids.append([token_id])
            positions.append([start])
            slots.append([block * BLOCK_SIZE + start % BLOCK_SIZE])
            in_prompt = start < len(sequence.prompt.token_ids)
            is_media.append([token_id == media_token_id and in_prompt])
            continue
        place = np.arange(start, end)
        token_ids = sequence.token_ids(start, end)
        in_prompt = place < len(sequence.prompt.token_ids)
        blocks = np.asarray(sequence.blocks, np.int64)
        ids.append(token_ids)
        positions.append(place)
        slots.append(blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE)
        is_media.append((token_ids == media_token_id) & in_prompt)
    return {
        "token_ids": _concatenated(ids),
        "positions": _concatenated(positions),
        "slots": _concatenated(slots),
        "media_rows": np.flatnonzero(_concatenated(is_media)),
    }


def _pending(chunks: Sequence[Chunk]) -> dict[str, NDArray[np.int64]]:
    """Say which rows give a token, and which rows hold one that only the device knows."""
    ends = np.cumsum([chunk.end - chunk.start for chunk in chunks], dtype=np.int64)
    is_last = np.array([chunk.is_last for chunk in chunks], bool)
    pending = [place for place, chunk in enumerate(chunks) if chunk.sequence.num_pending]
    sampled = [chunks[place].sequence.pending_row for place in pending]
    return {
        "logit_rows": ends[is_last] - 1,
        "pending_rows": ends[pending] - 1,
        "pending_sampled": np.array(sampled, np.int64),
    }


def _concatenated(parts: Sequence[Any]) -> NDArray[np.int64]:
    """Concatenate as int64; no parts give an empty array, which numpy would refuse."""
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)
