"""Dispatchers that bring tokens to experts on other ranks, and bring the sums back home.

Both do the work of `model.network.moe.Dispatcher` across a process group, which they take as an
argument. They take the *slots* of the experts (`parallel.experts.topology`) instead of the experts;
`parallel.ranks.step_dispatcher` translates. All ranks of the group must call them together, layer
by layer, even with no tokens: a rank that stays away leaves the others waiting in a collective.

| | moves, in each direction | waits for the device |
|---|---|---|
| `AllToAllDispatcher` | each row to each rank that holds one of its experts | once per layer |
| `AllGatherDispatcher` | `bucket` rows of every rank to every rank | never |

Letters: T tokens, D hidden size, K experts per token, R ranks, S rows that this rank sends,
N rows that it receives.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from model.network.moe import RoutedRows, add_rows
from parallel.experts.collectives import all_gather_single, reduce_scatter_single
from parallel.experts.policy import WireDtype
from parallel.experts.wire import deserialize_rows, serialize_rows


@dataclass(frozen=True)
class InFlightRows:
    """Serialised rows that travel between ranks."""

    sent: Tensor  # [S, bytes]; the collective reads it until `work` is done, so it must stay alive
    received: Tensor  # [N, bytes]
    work: dist.Work | None
    like: Tensor  # gives the dtype of the rows
    top_k: int
    wire_dtype: WireDtype

    def wait(self) -> RoutedRows:
        """Wait until all rows are here: rows [N, D], slots or local ids [N, K], weights [N, K]."""
        assert self.work is not None
        self.work.wait()
        return deserialize_rows(self.received, self.like, self.top_k, self.wire_dtype)


@dataclass(frozen=True)
class AllToAllDispatcher:
    """Sends a token at most once to each rank, even where several of its experts live there.

    counts --> rows, with the local ids and weights of their experts --> local experts -->
    one partial sum for each row, back on the same way --> the sums of all ranks added at home
    """

    num_local_experts: int  # the slots of each rank
    group: dist.ProcessGroup
    wire_dtype: WireDtype = "auto"  # of rows between ranks

    def dispatch(self, x: Tensor, slots: Tensor, weights: Tensor) -> "AllToAllDispatch":
        """Send each token of `x` [T, D] to its slots; return while the rows travel.

        There is one slot for each expert of a token: `slots` are [T, K] int64, `weights` [T, K]
        float32. T = 0 is legal.
        """
        num_ranks = self.group.size()
        ranks, local_ids = slots // self.num_local_experts, slots % self.num_local_experts
        dest_mask = torch.zeros(len(x), num_ranks, dtype=torch.bool, device=x.device)
        dest_mask.scatter_(1, ranks, value=True)  # [T, R]
        counts = self._exchange_counts(dest_mask.sum(0))

        # By token -> by rank, then by token.
        route = torch.nonzero_static(dest_mask.T, size=sum(counts.sent_rows))  # [S, 2]
        to_rank, token = route.unbind(1)
        is_there = ranks[token] == to_rank[:, None]  # [S, K]
        ids_there = torch.where(is_there, local_ids[token], -1)
        sent = serialize_rows(x.index_select(0, token), ids_there, weights[token], self.wire_dtype)
        received = sent.new_empty(sum(counts.received_rows), sent.shape[1])  # [N, bytes]
        splits = (counts.received_rows, counts.sent_rows)
        work = dist.all_to_all_single(received, sent, *splits, group=self.group, async_op=True)
        in_flight = InFlightRows(sent, received, work, x, slots.shape[1], self.wire_dtype)
        return AllToAllDispatch(self, in_flight, counts, dest_mask)

    def _exchange_counts(self, sent: Tensor) -> "RowCounts":
        """Tell every rank how many rows it gets from this one; `sent` are [R] int64."""
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        # The only wait for the device in this layer: a collective takes its sizes from the host.
        sizes = torch.cat((sent, received)).tolist()
        return RowCounts(sizes[: len(sent)], sizes[len(sent) :])


@dataclass(frozen=True)
class RowCounts:
    """How many rows an all-to-all moves."""

    sent_rows: list[int]  # to each rank; they sum to S
    received_rows: list[int]  # from each rank; they sum to N


@dataclass(frozen=True)
class AllToAllDispatch:
    """Rows that an all-to-all brings to the experts; a `model.network.moe.Dispatch`."""

    dispatcher: AllToAllDispatcher
    in_flight: InFlightRows
    counts: RowCounts
    dest_mask: Tensor  # [T, R]

    @property
    def arrived(self) -> RoutedRows:
        """The rows [N, D] that are here; a read waits until they have arrived."""
        return self.in_flight.wait()

    def combine(self, sums: Tensor) -> Tensor:
        """Bring the sums of the local experts [N, D] home, and add those of all ranks: [T, D]."""
        dtype = sums.dtype
        if self.dispatcher.wire_dtype != "auto":
            sums = sums.bfloat16()
        returned = sums.new_empty(sum(self.counts.sent_rows), sums.shape[1])  # [S, D]
        splits = (self.counts.sent_rows, self.counts.received_rows)
        dist.all_to_all_single(returned, sums, *splits, group=self.dispatcher.group)
        # Sums come back in the order in which rows were sent: by rank, then by token.
        by_rank = self.dest_mask.T  # [R, T]
        places = by_rank.flatten().cumsum(0).view(by_rank.shape).T - 1  # [T, R]
        return add_rows(returned.to(dtype), places.where(self.dest_mask, -1))


@dataclass
class AllGatherDispatcher:
    """Gives all rows to all ranks; each computes its own experts, and the sums are scattered home.

    The rows of a rank that are not its tokens are padding, which belongs to no expert. Sums come
    back in float32.
    """

    num_local_experts: int  # the slots of each rank
    group: dist.ProcessGroup
    bucket: int  # rows of every rank, at least the tokens of the busiest one
    wire_dtype: WireDtype = "auto"  # of rows on their way to the experts

    def dispatch(self, x: Tensor, slots: Tensor, weights: Tensor) -> "AllGatherDispatch":
        """Do as `AllToAllDispatcher.dispatch`; T is at most `bucket`."""
        assert len(x) <= self.bucket
        padding = (0, 0, 0, self.bucket - len(x))
        slots = F.pad(slots, padding, value=-1)
        sent = serialize_rows(F.pad(x, padding), slots, F.pad(weights, padding), self.wire_dtype)
        received = sent.new_empty(self.group.size() * self.bucket, sent.shape[1])
        work = all_gather_single(received, sent, group=self.group, async_op=True)
        in_flight = InFlightRows(sent, received, work, x, slots.shape[1], self.wire_dtype)
        return AllGatherDispatch(self, x, in_flight)


@dataclass(frozen=True)
class AllGatherDispatch:
    """Rows that an all-gather brings to the experts; a `model.network.moe.Dispatch`."""

    dispatcher: AllGatherDispatcher
    x: Tensor  # [T, D]
    in_flight: InFlightRows

    @property
    def arrived(self) -> RoutedRows:
        """The rows of all ranks [R * bucket, D]; a read waits until they have arrived."""
        x, slots, weights = self.in_flight.wait()
        num_local = self.dispatcher.num_local_experts
        # Slots of ranks before this one, and those of padding, become negative by this.
        local_ids = slots - self.dispatcher.group.rank() * num_local
        return x, local_ids.masked_fill(local_ids >= num_local, -1), weights

    def combine(self, sums: Tensor) -> Tensor:
        """Bring the sums of the local experts [R * bucket, D] home, and add all ranks': [T, D]."""
        home = sums.new_empty(self.dispatcher.bucket, sums.shape[1], dtype=torch.float32)
        reduce_scatter_single(home, sums.float(), group=self.dispatcher.group)
        return home[: len(self.x)].type_as(self.x)
