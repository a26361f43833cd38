"""`StepDispatcher`: one dispatcher for each step, as all ranks agreed, so that all use the same."""

import torch
import torch.distributed as dist
from torch import Tensor

from model.network.moe import Dispatch
from parallel.experts.dispatch import AllGatherDispatcher, AllToAllDispatcher
from parallel.experts.policy import DispatchChoice, Exchange, choose
from parallel.ranks.lockstep import StepPlan


class StepDispatcher:
    """A dispatcher to slots for whole steps; `begin` each with its plan."""

    def __init__(
        self, num_held: int, group: dist.ProcessGroup, device: torch.device, exchange: Exchange
    ) -> None:
        self._device = device
        self._choice: DispatchChoice = exchange.dispatch
        wire = exchange.wire_dtype
        self._all_to_all = AllToAllDispatcher(num_held, group, wire)
        self._all_gather = AllGatherDispatcher(num_held, group, bucket=1, wire=wire)
        self._now: AllToAllDispatcher | AllGatherDispatcher = self._all_to_all

    def begin(self, plan: StepPlan) -> None:
        """Use for the layers to come what the plan calls for."""
        self._now = self._all_to_all
        chosen = choose(
            self._choice,
            is_decode=plan.is_decode,
            num_ranks=len(plan.tokens),
            device=self._device.type,
        )
        if chosen == "all_gather":
            self._all_gather.bucket = plan.max_tokens
            self._now = self._all_gather

    def dispatch(self, x: Tensor, slots: Tensor, weights: Tensor) -> Dispatch:
        """As `model.network.moe.Dispatcher.dispatch`, for slots."""
        return self._now.dispatch(x, slots, weights)
