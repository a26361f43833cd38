"""Decode steps as CUDA graphs: the hundreds of kernel launches of a step become one.

A graph replays fixed shapes. So a step is padded to one of few sizes, with sequences whose results
nobody reads, and pieces of context that belong to them. The captured work must not wait for the
host.

This has not yet run on a GPU. Tests compare the numbers of padded steps on CPUs, and check shapes
with fake CUDA tensors; the capture itself is not tested.

Letters: B sequences, N pieces, D hidden size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from model.network.batch import TokenBatch
from model.network.kimi_vl import KimiVL
from model.network.kv_cache import LatentCache
from model.network.kv_pieces import PIECE_LEN, Pieces

_PADDING_SLOT = 1  # in block 0, which no sequence owns; slot 0 must stay zero


class StaticStep:
    """The tensors of a decode step of fixed size; a graph reads them at fixed addresses.

    It must have more sequences (B) and pieces (N) than any step that is copied into it.
    """

    def __init__(self, num_sequences: int, num_pieces: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.pieces = Pieces(
            owners=zeros(num_pieces),
            places=zeros(num_pieces),
            most=num_pieces,
            slots=zeros(num_pieces, PIECE_LEN),
            is_context=zeros(num_pieces, PIECE_LEN, dtype=torch.bool),
        )
        self.batch = TokenBatch(
            token_ids=zeros(num_sequences),
            positions=zeros(num_sequences),
            query_lens=(1,) * num_sequences,
            context_lens=(1,) * num_sequences,
            num_decodes=num_sequences,
            slots=zeros(num_sequences),
            block_tables=zeros(num_sequences, 1),
            pieces=self.pieces,
        )

    def fill(self, batch: TokenBatch) -> None:
        """Copy a step of decodes into the tensors; padding belongs to the last sequence."""
        assert self.batch.slots is not None
        assert batch.slots is not None
        pieces, last = batch.decode_pieces, len(self.batch.token_ids) - 1
        for whole, part, padding in (
            (self.batch.token_ids, batch.token_ids, 0),
            (self.batch.positions, batch.positions, 0),
            (self.batch.slots, batch.slots, _PADDING_SLOT),
            (self.pieces.owners, pieces.owners, last),
            (self.pieces.places, pieces.places, 0),
            (self.pieces.slots, pieces.slots, 0),
            # Padding sees its keys too: attention to no key at all would be NaN.
            (self.pieces.is_context, pieces.is_context, 1),
        ):
            whole[: len(part)].copy_(part)
            whole[len(part) :].fill_(padding)


class DecodeGraphs:
    """Computes steps that only decode, with one graph for each size that occurs.

    The model must use the local dispatcher, which never waits for the host.
    """

    def __init__(self, model: KimiVL, cache: LatentCache) -> None:
        self._model = model
        self._cache = cache
        self._captured: dict[tuple[int, int], tuple[StaticStep, Callable[[], Tensor]]] = {}

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Compute the hidden states [T, D] of T decodes; the next call overwrites them."""
        num_sequences = len(batch.token_ids)
        size = (above(num_sequences), above(len(batch.decode_pieces.owners)))
        if size not in self._captured:
            step = StaticStep(*size, self._model.device)
            step.fill(batch)
            self._captured[size] = step, capture(lambda: self._model(step.batch, self._cache))
        step, replay = self._captured[size]
        step.fill(batch)
        return replay()[:num_sequences]


def above(count: int) -> int:
    """Return the next power of two above `count`, so that at least one is left for padding."""
    return 1 << count.bit_length()


def capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture `work` as a graph; the result replays it and returns the same tensor each time."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()  # libraries reserve their workspaces now; they must not during the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
