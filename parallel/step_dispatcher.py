"""`StepDispatcher`: one dispatcher for each step, as all ranks agreed, so that all use the same."""

import torch
import torch.distributed as dist
from torch import Tensor

from model.moe import Dispatch
from parallel.choice import DispatchChoice, choose
from parallel.dispatch import AllGatherDispatcher, AllToAllDispatcher
from parallel.lockstep import StepPlan
from parallel.topology import Topology


class StepDispatcher:
    """A dispatcher for whole steps; `begin` each with its plan."""

    def __init__(
        self,
        topology: Topology,
        group: dist.ProcessGroup,
        device: torch.device,
        choice: DispatchChoice,
    ) -> None:
        self._where = (topology, group, device)
        self._choice: DispatchChoice = choice
        self._all_to_all = AllToAllDispatcher(*self._where)
        self._all_gather = AllGatherDispatcher(*self._where, bucket=1)
        self._now: AllToAllDispatcher | AllGatherDispatcher = self._all_to_all

    def begin(self, plan: StepPlan) -> None:
        """Use for the layers to come what the plan calls for."""
        self._now = self._all_to_all
        chosen = choose(
            self._choice,
            is_decode=plan.is_decode,
            num_ranks=len(plan.tokens),
            device=self._where[2].type,
        )
        if chosen == "all_gather":
            self._all_gather.bucket = plan.max_tokens
            self._now = self._all_gather

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Dispatch:
        """As `model.moe.Dispatcher.dispatch`."""
        return self._now.dispatch(x, expert_ids, weights)
