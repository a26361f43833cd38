"""Mixture of experts: the router, the held experts, and the protocol that joins them.

A `Dispatcher` brings every token to the experts that the router chose and adds up what they give
back. `LocalDispatcher` does it in one process; the ones that cross ranks live elsewhere and follow
the same protocol. The route is in the returned `Dispatch`, so a dispatcher remembers nothing.

Letters: T tokens, D hidden size, E routed experts, K experts per token, F expert width, M rows that
reach the held experts.
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
    """Rows on their way through the experts."""

    @property
    def rows(self) -> Tensor:
        """[M, D] activations, by held expert; reading them may wait until all have arrived."""
        ...

    @property
    def rows_per_expert(self) -> Tensor:
        """[held experts] int64; they sum to M."""
        ...

    def combine(self, y: Tensor) -> Tensor:
        """Bring the experts' outputs [M, D] home: [T, D], weighted and summed over K."""
        ...


class Dispatcher(Protocol):
    """Brings tokens to experts, wherever these are."""

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor, /) -> Dispatch:
        """Send each token to each of its experts.

        Args:
            x: [T, D] token activations; T = 0 is legal.
            expert_ids: [T, K] int64 in [0, E), distinct in each row.
            weights: [T, K] float32.
        """
        ...


def add_rows(y: Tensor, which: Tensor, counts: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sums of chosen rows, each from left to right in float32 and rounded once; no atomics.

    Args:
        y: [M, D].
        which: rows of the first sum, then of the second ...; those beyond all sums are ignored.
        counts: [b] int64 how many rows each sum has.
        weights: float32, one for each of `which`; None for ones.

    Returns:
        [b, D], in the dtype of `y`.
    """
    starts = F.pad(counts.cumsum(0), (1, 0))  # the last begins what belongs to no sum
    if weights is not None and y.dtype != torch.float32:
        # Torch wants weights of y's dtype, which would round them; two such numbers do not.
        high = weights.to(y.dtype)
        weights = torch.stack((high, (weights - high).to(y.dtype)), dim=1).flatten()
        which, starts = which.repeat_interleave(2), 2 * starts
    return F.embedding_bag(which, y, starts, mode="sum", per_sample_weights=weights)[:-1]


class LocalDispatch:
    """Every row stays in this process; combined in top-k order, without atomics."""

    def __init__(self, x: Tensor, expert_ids: Tensor, weights: Tensor, num_experts: int) -> None:
        # Copies of tokens [T*K] by expert, then by token.
        experts, self._order = expert_ids.flatten().sort(stable=True)
        self._weights = weights
        self.rows = x.index_select(0, self._order // expert_ids.shape[1])  # [T*K, D]
        borders = torch.arange(num_experts + 1, device=x.device)
        # Not `bincount`, which waits for a GPU.
        self.rows_per_expert = torch.searchsorted(experts, borders).diff()

    def combine(self, y: Tensor) -> Tensor:
        """As `Dispatch.combine`."""
        num_tokens, top_k = self._weights.shape
        counts = self._order.new_full((num_tokens,), top_k)
        return add_rows(y, self._order.argsort(), counts, self._weights.flatten())


class LocalDispatcher:
    """The dispatcher of one process that holds all experts; the others are tested against it."""

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Dispatch:
        """As `Dispatcher.dispatch`."""
        return LocalDispatch(x, expert_ids, weights, self.num_experts)


@dataclass(frozen=True)
class ExpertShard:
    """One process's part of a layer's routed experts, and the way to all of them."""

    held: Sequence[int]  # the experts whose weights it has, as they are stacked
    dispatcher: Dispatcher


Shares = Callable[[int], ExpertShard]  # by layer


def whole(num_experts: int) -> Shares:
    """All experts of every layer, in this process."""
    share = ExpertShard(range(num_experts), LocalDispatcher(num_experts))
    return lambda _: share


class Router(nn.Module):
    """Chooses K experts for each token and weights them, all in float32.

    Sigmoid or softmax scores; the correction bias of `noaux_tc` chooses and never weights
    (DeepSeek-V3, arXiv 2412.19437, eq. 13-16); groups as `MoEGate` in the published code.
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
        """`x` [T, D] -> expert ids [T, K] int64 and weights [T, K] float32."""
        config = self.config
        logits = F.linear(x.float(), self.weight.float())  # [T, E]
        scores = logits.sigmoid() if config.scoring_func == "sigmoid" else logits.softmax(-1)
        expert_ids = self._choose(scores)
        weights = scores.gather(1, expert_ids)
        if config.norm_topk_prob and config.num_experts_per_tok > 1:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return expert_ids, weights * config.routed_scaling_factor

    def _choose(self, scores: Tensor) -> Tensor:
        """[T, E] scores -> [T, K] ids of the chosen experts, best first."""
        config = self.config
        choice = scores
        if config.topk_method == "noaux_tc":
            choice = scores + self.e_score_correction_bias.float()
        if config.topk_group < config.n_group:
            grouped = choice.unflatten(-1, (config.n_group, -1))  # [T, groups, E / groups]
            # A group counts as much as its best expert, or its best two under noaux_tc.
            best = 2 if config.topk_method == "noaux_tc" else 1
            group_scores = grouped.topk(min(best, grouped.shape[-1]), dim=-1).values.sum(-1)
            kept = group_scores.topk(config.topk_group, dim=-1).indices
            mask = torch.zeros_like(group_scores, dtype=torch.bool).scatter(1, kept, value=True)
            choice = grouped.masked_fill(~mask[..., None], -torch.inf).flatten(1)
        return choice.topk(config.num_experts_per_tok, dim=-1).indices


class Experts(nn.Module):
    """The routed experts that this process holds, stacked.

    The checkpoint has three matrices an expert; here gate and up are one product.
    """

    def __init__(self, num_held: int, hidden_size: int, width: int) -> None:
        super().__init__()
        # [held, 2F, D]: gate rows, then up rows; [held, D, F].
        self.gate_up_proj = nn.Parameter(torch.empty(num_held, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_held, hidden_size, width))
        for weight in (self.gate_up_proj, self.down_proj):
            nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)

    def forward(self, rows: Tensor, rows_per_expert: Tensor) -> Tensor:
        """`rows` [M, D], by held expert, -> [M, D]; nothing here waits for the device."""
        ends = rows_per_expert.cumsum(0).to(torch.int32)
        gate_up = F.grouped_mm(rows, self.gate_up_proj.transpose(1, 2), offs=ends)  # [M, 2F]
        gate, up = gate_up.chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate) * up, self.down_proj.transpose(1, 2), offs=ends)


class MoE(nn.Module):
    """Routed experts and the experts that every token shares, which are one MLP, unscaled."""

    rows_computed: Tensor  # [held experts] int64, since this was made: how busy each expert is

    def __init__(self, config: TextConfig, share: ExpertShard) -> None:
        super().__init__()
        self.held = share.held
        self.dispatcher = share.dispatcher
        self.gate = Router(config)
        self.experts = Experts(len(self.held), config.hidden_size, config.moe_intermediate_size)
        rows = torch.zeros(len(self.held), dtype=torch.int64)
        self.register_buffer("rows_computed", rows, persistent=False)
        self.shared_experts = None
        if config.n_shared_experts:
            shared_width = config.moe_intermediate_size * config.n_shared_experts
            self.shared_experts = MLP(config.hidden_size, shared_width)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [T, D] -> [T, D]."""
        expert_ids, weights = self.gate(x)
        dispatch = self.dispatcher.dispatch(x, expert_ids, weights)
        # While the rows travel, and so before `dispatch.rows`.
        shared = None if self.shared_experts is None else self.shared_experts(x)
        rows_per_expert = dispatch.rows_per_expert
        routed = dispatch.combine(self.experts(dispatch.rows, rows_per_expert))
        self.rows_computed.add_(rows_per_expert)  # queued like all else; nobody waits
        return routed if shared is None else routed + shared
