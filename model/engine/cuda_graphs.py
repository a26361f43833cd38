"""Decode steps as CUDA graphs: the hundreds of kernel launches of a step become one.

A graph replays fixed shapes. So a step is filled up to one of few sizes with sequences whose
results nobody reads. The captured work must not wait for the host, and all of its inputs are
tensors on the device at fixed addresses: `StaticStep`. The length of a context is such an input
too, so a graph depends on nothing but the number of sequences.

This has not yet run on a GPU. Tests compare the numbers of filled-up steps on CPUs, and check
shapes with fake CUDA tensors; the capture itself is not tested.

Letters: B sequences, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.network.batch import TokenBatch
from model.network.kimi_vl import KimiVL
from model.network.kv_cache import LatentCache
from model.network.kv_pieces import PagedContexts


class StaticStep:
    """The tensors of a decode step of B sequences; a graph reads them at fixed addresses."""

    def __init__(self, size: int, tables: Tensor) -> None:
        self._size = size
        self._tables = tables
        self._inputs = [
            torch.ones(size, dtype=dtype, device=tables.device)
            for dtype in (torch.int64,) * 3 + (torch.int32,) * 2
        ]

    def fill(self, batch: TokenBatch) -> None:
        """Copy a step of as many decodes into the tensors."""
        assert batch.slots is not None
        assert batch.contexts is not None
        rows, lens = batch.contexts.rows, batch.contexts.lens
        inputs = [batch.token_ids, batch.positions, batch.slots, rows, lens]
        for mine, other in zip(self._inputs, inputs, strict=True):
            mine.copy_(other)

    def batch(self) -> TokenBatch:
        """Return the step as a batch; it says nothing about lengths that the host knows."""
        token_ids, positions, slots, rows, lens = self._inputs
        return TokenBatch(
            token_ids=token_ids,
            positions=positions,
            query_lens=(1,) * self._size,
            context_lens=(2,) * self._size,
            num_paged=self._size,
            slots=slots,
            contexts=PagedContexts(self._tables, rows, lens),
            table_rows=(0,) * self._size,
        )


class DecodeGraphs:
    """Computes steps that only decode, with one graph for each size that occurs.

    All graphs share one pool of memory, because never do two of them run at the same time.
    """

    def __init__(self, model: KimiVL, cache: LatentCache, max_batch_size: int) -> None:
        self._model = model
        self._cache = cache
        self._sizes = graph_sizes(max_batch_size)
        self._captured: dict[int, tuple[StaticStep, Callable[[], Tensor]]] = {}
        self._pool: Any = None  # torch has no public name for its type

    def size_for(self, num_sequences: int) -> int:
        """Return the size of the graph for so many decodes."""
        return next(size for size in self._sizes if size >= num_sequences)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Compute the hidden states [B, D] of B decodes, one of the sizes.

        The next call overwrites them.
        """
        size = len(batch.token_ids)
        if size not in self._captured:
            assert batch.contexts is not None
            step = StaticStep(size, batch.contexts.tables)
            step.fill(batch)  # the work is done once before the capture, and must not touch blocks
            work = capture(lambda: self._model(step.batch(), self._cache), self._graph_pool())
            self._captured[size] = step, work
        step, replay = self._captured[size]
        step.fill(batch)
        return replay()

    def _graph_pool(self) -> Any:
        if self._pool is None and self._model.device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool


def graph_sizes(max_batch_size: int) -> list[int]:
    """List the numbers of sequences that have a graph: 1, 2, 4, then the multiples of 8.

    The last one is at least `max_batch_size`. So a step computes at most seven sequences too many.
    """
    return [1, 2, 4, *range(8, max_batch_size + 8, 8)]


def capture(work: Callable[[], Tensor], pool: Any) -> Callable[[], Tensor]:
    """Capture `work` as a graph; the result replays it and returns the same tensor each time."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()  # libraries reserve their workspaces now; they must not during the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        output = work()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
