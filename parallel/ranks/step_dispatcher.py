"""`StepDispatcher`: the dispatcher of each step, chosen by the plan that all ranks agreed on.

Letters: E routed experts, T tokens, K experts per token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from model.engine.engine import StepTurn
from model.network.moe import Dispatch, ExpertShard
from parallel.experts.dispatch import AllGatherDispatcher, AllToAllDispatcher
from parallel.experts.policy import DispatchChoice, Exchange, choose
from parallel.experts.topology import Topologies, Topology
from parallel.ranks.lockstep import StepPlan


class StepDispatcher:
    """Chooses a dispatcher for whole steps: call `begin` with the plan of each.

    All layers share it, because all have equally many slots per rank. `LayerDispatcher` adds what
    differs between layers.
    """

    def __init__(
        self,
        topologies: Topologies,
        group: dist.ProcessGroup,
        device: torch.device,
        exchange: Exchange,
    ) -> None:
        (num_local_experts,) = {each.num_local_experts for each in topologies.values()}
        self._topologies = topologies
        self._rank = group.rank()
        self._device = device
        self._choice: DispatchChoice = exchange.dispatch
        wire_dtype = exchange.wire_dtype
        self._all_to_all = AllToAllDispatcher(num_local_experts, group, wire_dtype)
        self._all_gather = AllGatherDispatcher(num_local_experts, group, 1, wire_dtype)
        self.current: AllToAllDispatcher | AllGatherDispatcher = self._all_to_all
        # Number of decodes of the busiest rank -> to how many every rank fills up its step.
        self.filled_size: Callable[[int], int] = lambda num_sequences: num_sequences
        self.turn = StepTurn(0, may_replay=False)  # what the engine needs to know of the plan

    def begin(self, plan: StepPlan) -> None:
        """Choose the dispatcher for the layers of the step of this plan.

        The choice depends on the plan alone, so all ranks make the same one. Different collectives
        on different ranks would hang.
        """
        self.current = self._all_to_all
        num_ranks, device = len(plan.tokens), self._device.type
        chosen = choose(self._choice, is_decode=plan.is_decode, num_ranks=num_ranks, device=device)
        gathers = chosen == "all_gather"
        if gathers:
            size = self.filled_size(plan.max_tokens) if plan.is_decode else plan.max_tokens
            self._all_gather.bucket = size
            self.current = self._all_gather
        self.turn = StepTurn(plan.max_tokens, may_replay=plan.is_decode and gathers)

    def shards(self) -> dict[int, ExpertShard]:
        """Return this rank's shard of each layer with routed experts."""
        return {
            layer: ExpertShard(topology.local_experts[self._rank], self.for_layer(topology))
            for layer, topology in self._topologies.items()
        }

    def for_layer(self, topology: Topology) -> "LayerDispatcher":
        """Return the dispatcher of a layer whose experts are placed like this."""
        return LayerDispatcher(self, torch.tensor(topology.slots(self._rank), device=self._device))


@dataclass(frozen=True)
class LayerDispatcher:
    """Sends the tokens of one layer to its experts; a `model.network.moe.Dispatcher`."""

    step: StepDispatcher
    slots: Tensor  # [E] int64, the slot of each expert

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Dispatch:
        """Send each token to each of its experts; see `model.network.moe.Dispatcher.dispatch`."""
        return self.step.current.dispatch(x, self.slots[expert_ids], weights)
