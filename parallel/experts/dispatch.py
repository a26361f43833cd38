"""Dispatchers that bring tokens to experts on other ranks, and what these give back home.

Both follow the protocol of `model.network.moe` and take the process group as an argument. All ranks
of the group must call them together, layer by layer, also with no tokens. In place of experts they
are told the slots that hold these (`parallel.experts.topology`); `shards.ByExpert` looks them up.

| | moves, each way | waits for the device |
|---|---|---|
| `AllToAllDispatcher` | a row to each rank that holds an expert of it | once a layer |
| `AllGatherDispatcher` | `bucket` rows of every rank to every rank | never |

Letters: T tokens, D hidden size, K experts per token, R ranks, M rows that reach the held experts,
S rows that this rank sends, N rows that arrive.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from model.network.moe import add_rows
from parallel.experts.permute import HeldRows, pack, rows_per_place, unpack
from parallel.experts.policy import WireDtype


@dataclass(frozen=True)
class InFlightRows:
    """Packed rows between ranks."""

    leaving: Tensor  # kept until they have left
    arriving: Tensor  # [N, bytes]
    work: dist.Work | None
    like: Tensor
    top_k: int
    wire: WireDtype

    def arrive(self) -> tuple[Tensor, Tensor, Tensor]:
        """Wait: rows [N, D], places [N, K], weights [N, K]."""
        assert self.work is not None
        self.work.wait()
        return unpack(self.arriving, self.like, self.top_k, self.wire)


class AllToAllDispatcher:
    """Sends a token at most once to each rank, however many of its experts live there.

    counts --> rows, with the places and weights of their experts --> held experts -->
    a partial sum for each row, back the same way --> added at home by rank

    Args:
        num_held: slots of each rank.
        group: of the ranks.
        wire: how rows travel.
    """

    def __init__(self, num_held: int, group: dist.ProcessGroup, wire: WireDtype = "auto") -> None:
        self.num_held = num_held
        self.group = group
        self.wire: WireDtype = wire

    def dispatch(self, x: Tensor, slots: Tensor, weights: Tensor) -> "AllToAllDispatch":
        """As `model.network.moe.Dispatcher.dispatch`, for slots; returns while rows travel."""
        ranks, places = slots // self.num_held, slots % self.num_held
        num_ranks = self.group.size()
        goes = torch.zeros(len(x), num_ranks, dtype=torch.bool, device=x.device)
        goes.scatter_(1, ranks, value=True)  # [T, R]
        to_expert = rows_per_place(slots, num_ranks * self.num_held).view(num_ranks, -1)
        sent = torch.cat((to_expert, goes.sum(0)[:, None]), dim=1)  # [R, held + 1]
        received = torch.empty_like(sent)  # what each rank sends to this one's experts
        dist.all_to_all_single(received, sent, group=self.group)
        from_ranks, rows_per_expert = received[:, -1], received[:, :-1].sum(0)

        # The one wait for the device in this layer: the sizes must be on the host.
        sizes = torch.cat((sent[:, -1], from_ranks, rows_per_expert.sum()[None])).tolist()
        sent_rows, arriving_rows = sizes[:num_ranks], sizes[num_ranks:-1]

        # By rank, then by token.
        route = torch.nonzero_static(goes.T, size=sum(sent_rows))  # [S, 2]
        to_rank, token = route.unbind(1)
        is_there = ranks[token] == to_rank[:, None]  # [S, K]
        there = torch.where(is_there, places[token], -1)
        leaving = pack(x.index_select(0, token), there, weights[token], self.wire)
        arriving = leaving.new_empty(sum(arriving_rows), leaving.shape[1])  # [N, bytes]
        work = dist.all_to_all_single(
            arriving, leaving, arriving_rows, sent_rows, group=self.group, async_op=True
        )
        in_flight = InFlightRows(leaving, arriving, work, x, slots.shape[1], self.wire)
        return AllToAllDispatch(
            self, token, goes, in_flight, rows_per_expert, sizes[-1], sent_rows, arriving_rows
        )


class AllToAllDispatch:
    """Rows on their way; as `model.network.moe.Dispatch`."""

    def __init__(
        self,
        dispatcher: AllToAllDispatcher,
        token: Tensor,
        goes: Tensor,
        in_flight: InFlightRows,
        rows_per_expert: Tensor,
        num_copies: int,
        sent_rows: list[int],
        arriving_rows: list[int],
    ) -> None:
        self.rows_per_expert = rows_per_expert
        self._dispatcher = dispatcher
        self._token = token  # [S], by rank, then by token
        self._goes = goes  # [T, R]
        self._travelling = in_flight
        self._num_copies = num_copies
        self.sent_rows = sent_rows
        self.arriving_rows = arriving_rows

    @cached_property
    def _held(self) -> HeldRows:
        x, places, weights = self._travelling.arrive()
        return HeldRows(x, places, weights, self._dispatcher.num_held, self._num_copies)

    @property
    def rows(self) -> Tensor:
        """[M, D], by held expert, once they have arrived."""
        return self._held.rows

    def combine(self, y: Tensor) -> Tensor:
        """Outputs of the held experts [M, D] -> [T, D] at home."""
        partial = self._held.partial_sums(y)  # [N, D]
        if self._dispatcher.wire != "auto":
            partial = partial.bfloat16()
        returned = partial.new_empty(sum(self.sent_rows), y.shape[1])  # [S, D]
        dist.all_to_all_single(
            returned, partial, self.sent_rows, self.arriving_rows, group=self._dispatcher.group
        )
        # They stand as they left: by rank, then by token -> by token, then by rank.
        by_token = self._token.argsort(stable=True)
        return add_rows(returned.type_as(y), by_token, self._goes.sum(1))


class AllGatherDispatcher:
    """Shows all rows to all ranks; each answers for its experts, and the sums are scattered home.

    Args:
        num_held: slots of each rank.
        group: of the ranks.
        bucket: rows of every rank, at least the tokens of the busiest; the rest is padding, which
            no expert ever sees.
        wire: how rows travel on their way there; sums come back in float32.
    """

    def __init__(
        self, num_held: int, group: dist.ProcessGroup, bucket: int, wire: WireDtype = "auto"
    ) -> None:
        self.num_held = num_held
        self.group = group
        self.bucket = bucket
        self.wire: WireDtype = wire

    def dispatch(self, x: Tensor, slots: Tensor, weights: Tensor) -> "AllGatherDispatch":
        """As `model.network.moe.Dispatcher.dispatch`, for slots of at most `bucket` tokens."""
        assert len(x) <= self.bucket
        padding = (0, 0, 0, self.bucket - len(x))
        slots = F.pad(slots, padding, value=-1)
        leaving = pack(F.pad(x, padding), slots, F.pad(weights, padding), self.wire)
        arriving = leaving.new_empty(self.group.size() * self.bucket, leaving.shape[1])
        work = dist.all_gather_single(arriving, leaving, group=self.group, async_op=True)
        in_flight = InFlightRows(leaving, arriving, work, x, slots.shape[1], self.wire)
        return AllGatherDispatch(self, x, in_flight)


class AllGatherDispatch:
    """Rows on their way; as `model.network.moe.Dispatch`.

    On a GPU the number of rows is not known to the host, so there are as many as there could be,
    and those beyond the sum of `rows_per_expert` mean nothing.
    """

    def __init__(self, dispatcher: AllGatherDispatcher, x: Tensor, in_flight: InFlightRows) -> None:
        self._dispatcher = dispatcher
        self._x = x
        self._travelling = in_flight

    @cached_property
    def _arrived(self) -> tuple[HeldRows, Tensor]:
        x, slots, weights = self._travelling.arrive()  # [R * bucket, ...]
        num_held = self._dispatcher.num_held
        places = slots - self._dispatcher.group.rank() * num_held
        places = torch.where((slots >= 0) & (places >= 0) & (places < num_held), places, -1)
        counts = rows_per_place(places, num_held)
        most = len(places) * min(places.shape[1], num_held)
        num_copies = int(counts.sum()) if x.device.type == "cpu" else most
        return HeldRows(x, places, weights, num_held, num_copies), counts

    @property
    def rows(self) -> Tensor:
        """[M, D], by held expert, once they have arrived."""
        return self._arrived[0].rows

    @property
    def rows_per_expert(self) -> Tensor:
        """[held experts] int64."""
        return self._arrived[1]

    def combine(self, y: Tensor) -> Tensor:
        """Outputs of the held experts [M, D] -> [T, D] at home."""
        partial = self._arrived[0].partial_sums(y).float()  # [R * bucket, D]
        home = partial.new_empty(self._dispatcher.bucket, partial.shape[1])
        dist.reduce_scatter_single(home, partial, group=self._dispatcher.group)
        return home[: len(self._x)].type_as(self._x)
