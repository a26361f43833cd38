"""Which dispatcher each step uses: as all ranks agreed, so that all choose the same.

| `--dispatch` | |
|---|---|
| `all_to_all` | always |
| `all_gather` | always |
| `auto` | see `choose` |
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from model.moe import Dispatch
from parallel.dispatch import AllGatherDispatcher, AllToAllDispatcher
from parallel.lockstep import StepPlan
from parallel.topology import Topology

DispatchChoice = Literal["auto", "all_to_all", "all_gather"]

# Up to so many ranks a decode's bytes by all-gather are near those of the all-to-all, which has one
# exchange and one wait for the device more (BENCHMARKS.md; not yet measured on GPUs).
_MAX_GATHERING_RANKS = 4


def choose(plan: StepPlan, choice: DispatchChoice, device: torch.device) -> DispatchChoice:
    """`all_to_all` or `all_gather` for a step.

    `auto` takes all_gather for decodes of few ranks on GPUs, where a wait for the device costs more
    than bytes; on CPUs, where gloo's all-to-all is the faster collective, never.
    """
    if choice != "auto":
        return choice
    gathers = device.type == "cuda" and plan.is_decode and len(plan.tokens) <= _MAX_GATHERING_RANKS
    return "all_gather" if gathers else "all_to_all"


def explain(choice: DispatchChoice, num_ranks: int, device: str) -> str:
    """In words, what `choose` will do."""
    if num_ranks == 1:
        return "dispatch local: one rank holds all experts"
    if choice != "auto":
        return f"dispatch {choice}: as asked"
    if device == "cpu":
        return "dispatch all_to_all (auto): gloo's all-to-all is its fastest exchange"
    if num_ranks > _MAX_GATHERING_RANKS:
        return f"dispatch all_to_all (auto): fewest bytes with {num_ranks} ranks"
    return "dispatch all_to_all for prompts, all_gather for decodes (auto): no wait for the device"


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
        if choose(plan, self._choice, self._where[2]) == "all_gather":
            self._all_gather.bucket = plan.max_tokens
            self._now = self._all_gather

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Dispatch:
        """As `model.moe.Dispatcher.dispatch`."""
        return self._now.dispatch(x, expert_ids, weights)
