"""Dispatchers that bring tokens to experts on other ranks, and bring the sums back home.

Both do the work of `model.network.moe.Dispatcher` across a process group, which they take as an
argument. They take the *slots* of the experts (`parallel.experts.topology`) instead of the experts;
`parallel.ranks.step_dispatcher` translates. All ranks of the group must call them together, layer
by layer, even with no tokens: a rank that stays away leaves the others waiting in a collective.

| | moves, in each direction | waits for the device |
|---|---|---|
| `AllToAllDispatcher` | each row to each rank that holds one of its experts | once per layer |
| `AllGatherDispatcher` | `bucket` rows of every rank to every rank | never |

Letters: T tokens, D hidden size, K experts per token, R ranks, M rows that reach the local experts,
S rows that this rank sends, N rows that it receives.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from model.network.moe import add_rows
from parallel.experts.collectives import all_gather_single, reduce_scatter_single
from parallel.experts.permute import (
    RowsByExpert,
    count_copies,
    deserialize_rows,
    serialize_rows,
)
from parallel.experts.policy import WireDtype


@dataclass(frozen=True)
class InFlightRows:
    """Serialised rows that travel between ranks."""

    sent: Tensor  # [S, bytes]; the collective reads it until `work` is done, so it must stay alive
    received: Tensor  # [N, bytes]
    work: dist.Work | None
    like: Tensor  # gives the dtype of the rows
    top_k: int
    wire_dtype: WireDtype

    def wait(self) -> tuple[Tensor, Tensor, Tensor]:
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
        counts = self._exchange_counts(slots, dest_mask)

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
        return AllToAllDispatch(self, in_flight, counts, token, dest_mask)

    def _exchange_counts(self, slots: Tensor, dest_mask: Tensor) -> "RowCounts":
        """Tell every rank how many copies each of its experts gets, and how many rows they are."""
        num_ranks = self.group.size()
        copies = count_copies(slots, num_ranks * self.num_local_experts).view(num_ranks, -1)
        sent = torch.cat((copies, dest_mask.sum(0)[:, None]), dim=1)  # [R, local experts + 1]
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        rows_per_expert = received[:, :-1].sum(0)
        # The only wait for the device in this layer: a collective takes its sizes from the host.
        sizes = torch.cat((sent[:, -1], received[:, -1], rows_per_expert.sum()[None])).tolist()
        return RowCounts(rows_per_expert, sizes[-1], sizes[:num_ranks], sizes[num_ranks:-1])


@dataclass(frozen=True)
class RowCounts:
    """How many rows an all-to-all moves."""

    rows_per_expert: Tensor  # [local experts] int64
    num_copies: int  # their sum, M
    sent_rows: list[int]  # to each rank; they sum to S
    received_rows: list[int]  # from each rank; they sum to N


@dataclass(frozen=True)
class AllToAllDispatch:
    """Rows that an all-to-all brings to the experts; a `model.network.moe.Dispatch`."""

    dispatcher: AllToAllDispatcher
    in_flight: InFlightRows
    counts: RowCounts
    token: Tensor  # [S], the token of each sent row: by rank, then by token
    dest_mask: Tensor  # [T, R]

    @cached_property
    def _by_expert(self) -> RowsByExpert:
        num_local_experts = self.dispatcher.num_local_experts
        return RowsByExpert(*self.in_flight.wait(), num_local_experts, self.counts.num_copies)

    @property
    def rows(self) -> Tensor:
        """The rows [M, D] by local expert; the first read waits until they have arrived."""
        return self._by_expert.rows

    @property
    def rows_per_expert(self) -> Tensor:
        """How many rows each local expert has: [local experts] int64."""
        return self.counts.rows_per_expert

    def combine(self, y: Tensor) -> Tensor:
        """Bring the outputs of the local experts [M, D] home and sum them: [T, D]."""
        partial = self._by_expert.partial_sums(y)  # [N, D]
        if self.dispatcher.wire_dtype != "auto":
            partial = partial.bfloat16()
        returned = partial.new_empty(sum(self.counts.sent_rows), y.shape[1])  # [S, D]
        splits = (self.counts.sent_rows, self.counts.received_rows)
        dist.all_to_all_single(returned, partial, *splits, group=self.dispatcher.group)
        # Sums come back in the order in which rows were sent.
        # By rank, then by token -> by token, then by rank.
        by_token = self.token.argsort(stable=True)
        return add_rows(returned.type_as(y), by_token, self.dest_mask.sum(1))


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
    """Rows that an all-gather brings to the experts; a `model.network.moe.Dispatch`.

    On a GPU the host does not know M, and asking would wait for the device. So there are as many
    rows as there could be, and the content of those beyond the sum of `rows_per_expert` is
    undefined.
    """

    dispatcher: AllGatherDispatcher
    x: Tensor  # [T, D]
    in_flight: InFlightRows

    @cached_property
    def _arrived(self) -> tuple[RowsByExpert, Tensor]:
        x, slots, weights = self.in_flight.wait()  # [R * bucket, ...]
        num_local = self.dispatcher.num_local_experts
        local_ids = slots - self.dispatcher.group.rank() * num_local
        is_here = (slots >= 0) & (local_ids >= 0) & (local_ids < num_local)
        local_ids = torch.where(is_here, local_ids, -1)
        counts = count_copies(local_ids, num_local)
        most = len(local_ids) * min(local_ids.shape[1], num_local)
        num_copies = int(counts.sum()) if x.device.type == "cpu" else most
        return RowsByExpert(x, local_ids, weights, num_local, num_copies), counts

    @property
    def rows(self) -> Tensor:
        """The rows [M, D] by local expert; the first read waits until they have arrived."""
        return self._arrived[0].rows

    @property
    def rows_per_expert(self) -> Tensor:
        """How many rows each local expert has: [local experts] int64."""
        return self._arrived[1]

    def combine(self, y: Tensor) -> Tensor:
        """Bring the outputs of the local experts [M, D] home and sum them: [T, D]."""
        partial = self._arrived[0].partial_sums(y).float()  # [R * bucket, D]
        home = partial.new_empty(self.dispatcher.bucket, partial.shape[1])
        reduce_scatter_single(home, partial, group=self.dispatcher.group)
        return home[: len(self.x)].type_as(self.x)
