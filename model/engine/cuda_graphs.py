"""Decode steps as CUDA graphs: the step's hundreds of launches become one.

A graph replays fixed shapes, so a step is filled up to one of few sizes: sequences that nobody
reads, and pieces of context that belong to them. What is captured waits nowhere for the host.

Not yet run on a GPU: the filled-up step is tested for equal numbers on CPUs and for shapes under
fake CUDA tensors, the capture itself is not.

Letters: B sequences, N pieces, D hidden size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from model.network.batch import TokenBatch
from model.network.kimi_vl import KimiVL
from model.network.kv_cache import LatentCache
from model.network.kv_pieces import PIECE_LEN, Pieces

_NOBODYS_SLOT = 1  # of block 0; slot 0 must stay zero


class StaticStep:
    """The tensors of a decode step of fixed size, where graphs find them.

    Args:
        num_sequences: B, more than any step that fills it.
        num_pieces: N, more than any step that fills it.
        device: of the tensors.
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
        """Take over a step of decodes; what it leaves of the size belongs to the last sequence."""
        assert self.batch.slots is not None
        assert batch.slots is not None
        pieces, last = batch.decode_pieces, len(self.batch.token_ids) - 1
        _fill(self.batch.token_ids, batch.token_ids, 0)
        _fill(self.batch.positions, batch.positions, 0)
        _fill(self.batch.slots, batch.slots, _NOBODYS_SLOT)
        _fill(self.pieces.owners, pieces.owners, last)
        _fill(self.pieces.places, pieces.places, 0)
        _fill(self.pieces.slots, pieces.slots, 0)
        # Something must be seen everywhere: attention to nothing is not a number.
        _fill(self.pieces.is_context, pieces.is_context, 1)


def _fill(whole: Tensor, part: Tensor, rest: int) -> None:
    kept, others = whole.split((len(part), len(whole) - len(part)))
    kept.copy_(part)
    others.fill_(rest)


class DecodeGraphs:
    """Hidden states of steps that only decode, by a graph for each size met.

    Args:
        model: on a GPU, with a dispatcher that never waits for the host, as the local one.
        cache: read and written.
    """

    def __init__(self, model: KimiVL, cache: LatentCache) -> None:
        self._model = model
        self._cache = cache
        self._captured: dict[tuple[int, int], tuple[StaticStep, Callable[[], Tensor]]] = {}

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Hidden states [T, D] of T decodes; overwritten by the next call."""
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
    """The next power of two above `count`, so that one is left for what fills up."""
    return 1 << count.bit_length()


def capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`work` as a graph; what comes back replays it and returns the same tensor each time."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()  # libraries reserve their workspaces before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
