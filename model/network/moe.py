"""Mixture of experts: the router, the local experts, and the protocol between them.

A `Dispatcher` moves rows: each token to all processes that have an expert of it, and the sums of
these experts back home. What happens there is the matter of `Experts` alone. `LocalDispatcher`
moves nothing; dispatchers that cross ranks are in `parallel` and follow the same protocol. The
returned `Dispatch` knows the route, so a dispatcher keeps no state of a step.

*Local experts* are those whose weights this process has. A *local id* is the number of an expert
among them, and negative where the expert is on another rank.

Letters: T tokens, n rows that are here, D hidden size, E routed experts, K experts per token,
F expert width, M copies of rows, one for each local expert of a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import TextConfig
from model.network.mlp import MLP

# Rows [n, D], the local ids of their experts [n, K] int64 or int32, the weights [n, K] float32.
RoutedRows = tuple[Tensor, Tensor, Tensor]


class Dispatch(Protocol):
    """The rows of one layer on their way to the experts and back."""

    @property
    def arrived(self) -> RoutedRows:
        """The rows that are here; a read may wait until all have arrived."""
        ...

    def combine(self, sums: Tensor) -> Tensor:
        """Bring the sums of the local experts [n, D] home, and add what all ranks have: [T, D]."""
        ...


class Dispatcher(Protocol):
    """Brings tokens to experts, on whatever rank they are."""

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor, /) -> Dispatch:
        """Send each token of `x` [T, D] to each of its experts; T = 0 is legal.

        `expert_ids` are [T, K] int64 in [0, E), distinct in each row; `weights` [T, K] float32.
        """
        ...


@dataclass(frozen=True)
class LocalDispatch:
    """Rows that stay in this process."""

    arrived: RoutedRows

    def combine(self, sums: Tensor) -> Tensor:
        """Return the sums, which are at home already; see `Dispatch.combine`."""
        return sums


class LocalDispatcher:
    """The dispatcher of a process that holds all experts; tests compare the others with it."""

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Dispatch:
        """Keep each token here; see `Dispatcher.dispatch`."""
        return LocalDispatch((x, expert_ids, weights))


@dataclass(frozen=True)
class ExpertShard:
    """One process's routed experts of a layer, and the dispatcher to all experts of the layer."""

    local_experts: Sequence[int]  # whose weights this process has, in the order of the stack
    dispatcher: Dispatcher


Shards = Callable[[int], ExpertShard]  # layer -> this process's shard of it


def unsharded(num_experts: int) -> Shards:
    """Hold all experts of every layer in this process."""
    shard = ExpertShard(range(num_experts), LocalDispatcher())
    return lambda _: shard


class Router(nn.Module):
    """Chooses K experts for each token and weights them, all in float32.

    Scores are sigmoid or softmax. The correction bias of `noaux_tc` takes part in the choice, never
    in the weights (DeepSeek-V3, arXiv 2412.19437, eq. 13-16). Groups of experts are limited as in
    `MoEGate` of the published code.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        if config.topk_method == "noaux_tc":
            bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
            self.e_score_correction_bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` [T, D] to expert ids [T, K] int64 and weights [T, K] float32."""
        config = self.config
        logits = F.linear(x.float(), self.weight.float())  # [T, E]
        scores = logits.sigmoid() if config.scoring_func == "sigmoid" else logits.softmax(-1)
        expert_ids = self._choose(scores)
        weights = scores.gather(1, expert_ids)
        if config.norm_topk_prob and config.num_experts_per_tok > 1:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return expert_ids, weights * config.routed_scaling_factor

    def _choose(self, scores: Tensor) -> Tensor:
        """Map scores [T, E] to the ids [T, K] of the chosen experts, best first."""
        config = self.config
        choice = scores
        if config.topk_method == "noaux_tc":
            choice = scores + self.e_score_correction_bias.float()
        if config.topk_group < config.n_group:
            grouped = choice.unflatten(-1, (config.n_group, -1))  # [T, groups, E / groups]
            # The score of a group is that of its best expert, or the sum of its best two under
            # noaux_tc.
            best = 2 if config.topk_method == "noaux_tc" else 1
            group_scores = grouped.topk(min(best, grouped.shape[-1]), dim=-1).values.sum(-1)
            kept = group_scores.topk(config.topk_group, dim=-1).indices
            mask = torch.zeros_like(group_scores, dtype=torch.bool).scatter(1, kept, value=True)
            choice = grouped.masked_fill(~mask[..., None], -torch.inf).flatten(1)
        return choice.topk(config.num_experts_per_tok, dim=-1).indices


def add_rows(y: Tensor, places: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum chosen rows of `y` [M, D], from left to right in float32 and rounded once: [n, D].

    `places` [n, k] are the rows of each sum; negative ones are left out. `weights` [n, k] are
    float32. The order is fixed: no atomics, so the same input always gives the same bits. Rows that
    no place names are not read.
    """
    if y.device.type != "cpu":
        return add_rows_plainly(y, places, weights)
    if weights is not None and y.dtype != torch.float32:
        # Torch takes only weights of y's dtype, which would round them. So each weight becomes the
        # sum of two such numbers, and each row is added twice.
        high = weights.to(y.dtype)
        weights = torch.stack((high, (weights - high).to(y.dtype)), dim=-1).flatten(1)
        places = places.repeat_interleave(2, dim=1)
    is_row = places >= 0
    if len(places) and is_row.all():
        return F.embedding_bag(places, y, mode="sum", per_sample_weights=weights)
    starts = F.pad(is_row.sum(1).cumsum(0), (1, 0))  # the last one begins an empty sum
    weights = None if weights is None else weights[is_row]
    return F.embedding_bag(places[is_row], y, starts, mode="sum", per_sample_weights=weights)[:-1]


def add_rows_plainly(y: Tensor, places: Tensor, weights: Tensor | None = None) -> Tensor:
    """Do the work of `add_rows` column by column, without waiting for the device."""
    sums = y.new_zeros(len(places), y.shape[1], dtype=torch.float32)
    for column in range(places.shape[1] if len(y) else 0):
        place = places[:, column]
        rows = y.index_select(0, place.clamp(min=0)).float()
        if weights is not None:
            rows = rows * weights[:, column, None]
        sums = sums + rows.masked_fill(place[:, None] < 0, 0.0)
    return sums.type_as(y)


class RowsByExpert:
    """Rows, copied once for each of their local experts and grouped by expert.

    An example with four rows, K = 2 and the local experts 0 and 1:

        row          a        b        c        d
        local ids    [0, 1]   [1, -]   [0, -]   [1, 0]     (-: an expert of another rank)

        by row:                    a0 a1  b1  c0  d1 d0    (the copies, as they stand in local ids)
        -> by expert, then by row: a0 c0 d0 | a1 b1 d1     (`rows`, M = 6)

    After the experts the way goes back, and the copies of a row are added up in the order of their
    local ids: a = w * a0 + w * a1, b = w * b1, and so on.

    `num_copies` is M, how many local ids are not negative; None asks the device. If it is larger,
    the last rows belong to no expert, and what experts make of them is never read.
    """

    def __init__(
        self, arrived: RoutedRows, num_local_experts: int, num_copies: int | None = None
    ) -> None:
        x, local_ids, self._weights = arrived
        copies = local_ids.flatten()  # [n*K], by row
        is_absent = copies < 0
        # The copies of no expert get the number behind the last expert, so they come last.
        experts, order = copies.masked_fill(is_absent, num_local_experts).sort(stable=True)
        borders = torch.arange(num_local_experts + 1, dtype=copies.dtype, device=x.device)
        starts = torch.searchsorted(experts, borders)  # unlike `bincount`, this waits for nobody
        self.rows_per_expert = starts.diff()  # [local experts] int64
        order = order[: int(starts[-1]) if num_copies is None else num_copies]
        self.rows = x.index_select(0, order // local_ids.shape[1])  # [M, D], by expert, then by row
        places = torch.empty_like(copies, dtype=torch.int64)
        places.scatter_(0, order, torch.arange(len(order), device=x.device))
        self._places = places.masked_fill_(is_absent, -1).view(local_ids.shape)

    def sums(self, y: Tensor) -> Tensor:
        """Sum, for each row, the weighted outputs of its local experts: [M, D] -> [n, D]."""
        return add_rows(y, self._places, self._weights)


class RowExperts(nn.Module):
    """Local experts that compute rows grouped by expert; the subclass has weights and products."""

    rows_computed: Tensor  # [local experts] int64, rows since construction: how busy each expert is

    def __init__(self, num_local_experts: int) -> None:
        super().__init__()
        rows = torch.zeros(num_local_experts, dtype=torch.int64)
        self.register_buffer("rows_computed", rows, persistent=False)  # no checkpoint has it

    def forward(self, x: Tensor, local_ids: Tensor, weights: Tensor) -> Tensor:
        """Sum, for each row of `RoutedRows`, the weighted outputs of its local experts: [n, D]."""
        # On a GPU the host does not know M, and asking would wait for the device.
        num_copies = None if x.device.type == "cpu" else local_ids.numel()
        by_expert = RowsByExpert((x, local_ids, weights), len(self.rows_computed), num_copies)
        self.rows_computed.add_(by_expert.rows_per_expert)  # on the device: nothing waits for it
        return by_expert.sums(self.products(by_expert.rows, by_expert.rows_per_expert))

    def products(self, rows: Tensor, rows_per_expert: Tensor) -> Tensor:
        """Map `rows` [M, D], by local expert, to [M, D]; those beyond all experts to anything."""
        raise NotImplementedError


class Experts(RowExperts):
    """Local experts with stacked weights.

    The checkpoint has three matrices per expert; here gate and up are one matrix, for one product.
    """

    def __init__(self, num_local_experts: int, hidden_size: int, width: int) -> None:
        super().__init__(num_local_experts)
        # [local experts, 2F, D]: gate rows, then up rows; [local experts, D, F].
        self.gate_up_proj = nn.Parameter(torch.empty(num_local_experts, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_local_experts, hidden_size, width))
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)

    def products(self, rows: Tensor, rows_per_expert: Tensor) -> Tensor:
        """See `RowExperts.products`; nothing here waits for the device."""
        ends = rows_per_expert.cumsum(0).to(torch.int32)
        gate_up = F.grouped_mm(rows, self.gate_up_proj.transpose(1, 2), offs=ends)  # [M, 2F]
        gate, up = gate_up.chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate) * up, self.down_proj.transpose(1, 2), offs=ends)


class MoE(nn.Module):
    """Routed experts, and the shared experts of every token, which are one unscaled MLP."""

    def __init__(self, config: TextConfig, shard: ExpertShard) -> None:
        super().__init__()
        self.local_experts = shard.local_experts
        self.dispatcher = shard.dispatcher
        self.gate = Router(config)
        num_local_experts = len(self.local_experts)
        self.experts = Experts(num_local_experts, config.hidden_size, config.moe_intermediate_size)
        self.shared_experts = None
        if config.n_shared_experts:
            shared_width = config.moe_intermediate_size * config.n_shared_experts
            self.shared_experts = MLP(config.hidden_size, shared_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [T, D] to [T, D]."""
        expert_ids, weights = self.gate(x)
        dispatch = self.dispatcher.dispatch(x, expert_ids, weights)
        # Computed while the rows travel: `dispatch.arrived` waits for them.
        shared = None if self.shared_experts is None else self.shared_experts(x)
        routed = dispatch.combine(self.experts(*dispatch.arrived))
        return routed if shared is None else routed + shared
