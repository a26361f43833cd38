"""Mixture of experts: the router, the local experts, and the protocol between them.

A `Dispatcher` brings every token to the experts that the router chose and sums what they return.
`LocalDispatcher` does it in one process; dispatchers that cross ranks are in `parallel` and follow
the same protocol. The returned `Dispatch` knows the route, so a dispatcher keeps no state of a
step.

*Local experts* are those whose weights this process has.

Letters: T tokens, D hidden size, E routed experts, K experts per token, F expert width, M rows that
reach the local experts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import TextConfig
from model.network.mlp import MLP


class Dispatch(Protocol):
    """The rows of one layer on their way to the experts and back."""

    @property
    def rows(self) -> Tensor:
        """Activations [M, D], by local expert; the first read may wait until all have arrived."""
        ...

    @property
    def rows_per_expert(self) -> Tensor:
        """How many rows each local expert has: [local experts] int64, with the sum M."""
        ...

    def combine(self, y: Tensor) -> Tensor:
        """Bring the outputs of the experts [M, D] back: [T, D], weighted and summed over K."""
        ...


class Dispatcher(Protocol):
    """Brings tokens to experts, on whatever rank they are."""

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor, /) -> Dispatch:
        """Send each token of `x` [T, D] to each of its experts; T = 0 is legal.

        `expert_ids` are [T, K] int64 in [0, E), distinct in each row; `weights` [T, K] float32.
        """
        ...


def add_rows(y: Tensor, which: Tensor, counts: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum chosen rows of `y` [M, D], from left to right in float32 and rounded once: [b, D].

    The order is fixed: no atomics, so the same input always gives the same bits. `which` are the
    rows of the first sum, then of the second, and so on; `counts` [b] int64 says how many each has.
    Rows beyond the last sum are ignored. `weights` are float32, one for each of `which`.
    """
    starts = F.pad(counts.cumsum(0), (1, 0))  # the last one begins the rows of no sum
    if weights is not None and y.dtype != torch.float32:
        # Torch takes only weights of y's dtype, which would round them. So each weight becomes the
        # sum of two such numbers, and each row is added twice.
        high = weights.to(y.dtype)
        weights = torch.stack((high, (weights - high).to(y.dtype)), dim=1).flatten()
        which, starts = which.repeat_interleave(2), 2 * starts
    return F.embedding_bag(which, y, starts, mode="sum", per_sample_weights=weights)[:-1]


class LocalDispatch:
    """Rows that stay in this process; their outputs are summed in top-k order."""

    def __init__(self, x: Tensor, expert_ids: Tensor, weights: Tensor, num_experts: int) -> None:
        # The copies of tokens [T*K]: by token -> by expert, then by token.
        experts, self._order = expert_ids.flatten().sort(stable=True)
        self._weights = weights
        self.rows = x.index_select(0, self._order // expert_ids.shape[1])  # [T*K, D]
        borders = torch.arange(num_experts + 1, device=x.device)
        # `bincount` would do the same, but it waits for the GPU.
        self.rows_per_expert = torch.searchsorted(experts, borders).diff()

    def combine(self, y: Tensor) -> Tensor:
        """Bring the outputs back; see `Dispatch.combine`."""
        num_tokens, top_k = self._weights.shape
        counts = self._order.new_full((num_tokens,), top_k)
        return add_rows(y, self._order.argsort(), counts, self._weights.flatten())


class LocalDispatcher:
    """The dispatcher of a process that holds all experts; tests compare the others with it."""

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Dispatch:
        """Send each token to each of its experts; see `Dispatcher.dispatch`."""
        return LocalDispatch(x, expert_ids, weights, self.num_experts)


@dataclass(frozen=True)
class ExpertShard:
    """One process's routed experts of a layer, and the dispatcher to all experts of the layer."""

    local_experts: Sequence[int]  # whose weights this process has, in the order of the stack
    dispatcher: Dispatcher


Shards = Callable[[int], ExpertShard]  # layer -> this process's shard of it


def unsharded(num_experts: int) -> Shards:
    """Hold all experts of every layer in this process."""
    shard = ExpertShard(range(num_experts), LocalDispatcher(num_experts))
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


class Experts(nn.Module):
    """The local experts, with stacked weights.

    The checkpoint has three matrices per expert; here gate and up are one matrix, for one product.
    """

    def __init__(self, num_local_experts: int, hidden_size: int, width: int) -> None:
        super().__init__()
        # [local experts, 2F, D]: gate rows, then up rows; [local experts, D, F].
        self.gate_up_proj = nn.Parameter(torch.empty(num_local_experts, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_local_experts, hidden_size, width))
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)

    def forward(self, rows: Tensor, rows_per_expert: Tensor) -> Tensor:
        """Map `rows` [M, D], by local expert, to [M, D]; nothing here waits for the device."""
        ends = rows_per_expert.cumsum(0).to(torch.int32)
        gate_up = F.grouped_mm(rows, self.gate_up_proj.transpose(1, 2), offs=ends)  # [M, 2F]
        gate, up = gate_up.chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate) * up, self.down_proj.transpose(1, 2), offs=ends)


class MoE(nn.Module):
    """Routed experts, and the shared experts of every token, which are one unscaled MLP."""

    rows_computed: Tensor  # [local experts] int64, rows since construction: how busy each expert is

    def __init__(self, config: TextConfig, shard: ExpertShard) -> None:
        super().__init__()
        self.local_experts = shard.local_experts
        self.dispatcher = shard.dispatcher
        self.gate = Router(config)
        num_local_experts = len(self.local_experts)
        self.experts = Experts(num_local_experts, config.hidden_size, config.moe_intermediate_size)
        rows = torch.zeros(num_local_experts, dtype=torch.int64)
        self.register_buffer("rows_computed", rows, persistent=False)  # no checkpoint has it
        self.shared_experts = None
        if config.n_shared_experts:
            shared_width = config.moe_intermediate_size * config.n_shared_experts
            self.shared_experts = MLP(config.hidden_size, shared_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [T, D] to [T, D]."""
        expert_ids, weights = self.gate(x)
        dispatch = self.dispatcher.dispatch(x, expert_ids, weights)
        # Computed while the rows travel: `dispatch.rows` waits for them.
        shared = None if self.shared_experts is None else self.shared_experts(x)
        rows_per_expert = dispatch.rows_per_expert
        routed = dispatch.combine(self.experts(dispatch.rows, rows_per_expert))
        self.rows_computed.add_(rows_per_expert)  # on the device, so nothing waits for it
        return routed if shared is None else routed + shared
