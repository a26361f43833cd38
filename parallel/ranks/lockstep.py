"""`Lockstep`: the ranks of a group step together, by one plan that all of them know.

Before the layers of a step every rank tells every other what it brings, in one small exchange. Then
all compute, also those that bring nothing, or none does. What can fail on one rank alone (images,
tokenising, grammars, allocation) comes before the exchange, and is told in the next one, so that
nobody waits in a collective for a rank that has given up.

    plan, encode images --> exchange: tokens, phase, waiting, stop, error --> layers --> sample

What waits on each rank is told too, and decides what prompts the next step begins (`pace`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from parallel.ranks.pace import Pace

_REASON_BYTES = 256  # of a failure, for the others' logs


class LockstepError(RuntimeError):
    """The ranks of this group cannot go on together."""


@dataclass(frozen=True)
class StepPlan:
    """What all ranks know of the step to come."""

    tokens: tuple[int, ...]  # of each rank
    is_decode: bool  # no rank computes prompts
    waiting: tuple[int, ...]  # tokens of prompts that each rank could begin in the next step

    @property
    def max_tokens(self) -> int:
        """Of the busiest rank: 0 means that nobody has work."""
        return max(self.tokens)


@dataclass
class LockstepStats:
    """How well the ranks keep together, as one of them sees it."""

    num_steps: int = 0
    sum_mean_tokens: float = 0.0  # over steps: tokens of the average rank
    sum_max_tokens: int = 0  # over steps: tokens of the busiest rank
    own_tokens: int = 0
    wait_s: float = 0.0  # for slower ranks, in the exchanges of steps with work
    own_wait_s: float = 0.0  # of these, where this rank had tokens of its own
    work_s: float = 0.0  # in steps with work, waits included

    def numbers(self) -> dict[str, float]:
        """For reports; `level` is 1 where ranks always had equally many tokens."""
        level = self.sum_mean_tokens / self.sum_max_tokens if self.sum_max_tokens else 1.0
        return {
            "steps": self.num_steps,
            "tokens": self.own_tokens,
            "level": level,
            "own_wait_s": self.own_wait_s,
            "wait_share": self.wait_s / self.work_s if self.work_s else 0.0,
        }


class Lockstep:
    """One rank's side of the agreement.

    Args:
        group: of all ranks, able to exchange tensors on the CPU.
        on_plan: called with each plan before its layers run.
    """

    def __init__(
        self, group: dist.ProcessGroup, on_plan: Callable[[StepPlan], None] = lambda _: None
    ) -> None:
        self.stats = LockstepStats()
        self.pace = Pace()
        self._group = group
        self._on_plan = on_plan
        self._has_left = False

    @contextmanager
    def turn(self, num_tokens: int, is_decode: bool, num_waiting: int = 0) -> Iterator[bool]:
        """As `engine.Turn`: agree, then run the layers in the `with`, if there are tokens.

        `num_waiting` are tokens of prompts that this rank could begin in the next step.

        Raises:
            LockstepError: a rank has stopped or failed; so must this one.
        """
        began = time.monotonic()
        plan = self._agree(num_tokens, is_decode, num_waiting)
        agreed = time.monotonic()
        self.pace.follow(plan.waiting, is_idle=plan.max_tokens == 0)
        self._on_plan(plan)
        try:
            yield plan.max_tokens > 0
        except BaseException:
            # The others are inside collectives, where nothing can be told; free what can be freed.
            self._has_left = True
            self._group.abort()
            raise
        if plan.max_tokens:
            self._note(plan, num_tokens, agreed - began, time.monotonic() - began)

    @contextmanager
    def announced(self, *harmless: type[Exception]) -> Iterator[None]:
        """Tell the others when something else than `harmless` is raised on this rank."""
        try:
            yield
        except harmless:
            raise
        except BaseException as error:
            self._leave(f"{type(error).__name__}: {error}", is_failure=True)
            raise

    def stop(self) -> None:
        """Tell the others that this rank ends, which ends them too; twice is no error."""
        self._leave("it was closed", is_failure=False)

    def _leave(self, reason: str, *, is_failure: bool) -> None:
        if self._has_left:
            return
        self._has_left = True
        self._exchange(0, True, 0, 1 + is_failure)
        self._tell(reason)

    def _agree(self, num_tokens: int, is_decode: bool, num_waiting: int) -> StepPlan:
        """One exchange of four numbers with every rank."""
        told = self._exchange(num_tokens, is_decode, num_waiting, 0)
        tokens, decodes, waiting, has_ended = zip(*told, strict=True)
        ends = [rank for rank, end in enumerate(has_ended) if end]
        if ends:
            self._has_left = True
            reason = self._tell("")[ends[0]]
            verb = "failed" if has_ended[ends[0]] > 1 else "stopped"
            raise LockstepError(f"rank {ends[0]} of the group {verb}: {reason}")
        return StepPlan(tokens, all(decodes), waiting)

    def _exchange(self, *numbers: int) -> list[list[int]]:
        """Numbers of each rank; an all-to-all, which is gloo's fastest way to do it."""
        own = torch.tensor([numbers])
        told = torch.empty(self._group.size(), own.shape[1], dtype=torch.int64)
        dist.all_to_all_single(told, own.expand_as(told).contiguous(), group=self._group)
        return told.tolist()

    def _tell(self, reason: str) -> list[str]:
        """What each rank has to say; called by all after one ended."""
        text = reason.encode()[:_REASON_BYTES].ljust(_REASON_BYTES)
        own = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        told = torch.empty(self._group.size(), _REASON_BYTES, dtype=torch.uint8)
        dist.all_to_all_single(told, own.expand_as(told).contiguous(), group=self._group)
        return [bytes(row).decode(errors="replace").strip() for row in told.tolist()]

    def _note(self, plan: StepPlan, num_tokens: int, wait_s: float, step_s: float) -> None:
        stats = self.stats
        stats.num_steps += 1
        stats.sum_mean_tokens += sum(plan.tokens) / len(plan.tokens)
        stats.sum_max_tokens += plan.max_tokens
        stats.own_tokens += num_tokens
        stats.wait_s += wait_s
        stats.own_wait_s += wait_s if num_tokens else 0.0
        stats.work_s += step_s
