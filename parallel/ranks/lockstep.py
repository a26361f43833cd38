"""`Lockstep`: the ranks of a group step together, by a plan that all of them know.

Before the layers of a step, every rank tells every other rank what it brings, in one small
exchange. Then either all ranks compute, even those that bring nothing, or none does. What can fail
on one rank alone (images, tokenising, grammars, memory) comes before the exchange, and a failure is
told in the next exchange, so that no rank waits in a collective for one that has given up.

    plan, encode images --> exchange: tokens, phase, waiting, end --> layers --> sample

The exchange also says how many tokens wait on each rank, which decides when prompts begin (`pace`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.ranks.pace import Pace

_REASON_BYTES = 256  # of the reason for an end; all ranks must send equally many bytes


class LockstepError(RuntimeError):
    """The ranks of this group cannot go on together."""


@dataclass(frozen=True)
class StepPlan:
    """What all ranks know of the next step."""

    tokens: tuple[int, ...]  # of each rank
    is_decode: bool  # whether no rank computes a prompt
    waiting: tuple[int, ...]  # tokens of prompts that each rank could begin one step later

    @property
    def max_tokens(self) -> int:
        """Tokens of the busiest rank; 0 means that no rank has work."""
        return max(self.tokens)


@dataclass
class LockstepStats:
    """How well the ranks keep step, as one of them sees it."""

    num_steps: int = 0  # in which any rank had tokens, as all below
    sum_mean_tokens: float = 0.0  # over steps, tokens of the average rank
    sum_max_tokens: int = 0  # over steps, tokens of the busiest rank
    own_tokens: int = 0
    wait_s: float = 0.0  # for slower ranks, in the exchanges
    own_wait_s: float = 0.0  # the part of it in which this rank had tokens of its own
    work_s: float = 0.0  # in steps, waits included

    def numbers(self) -> dict[str, float]:
        """Return numbers for reports.

        `level` is the mean number of tokens of a rank divided by the largest; 1 is best.
        `wait_share` is the part of the time of steps in which this rank waited for others.
        """
        level = self.sum_mean_tokens / self.sum_max_tokens if self.sum_max_tokens else 1.0
        return {
            "steps": self.num_steps,
            "tokens": self.own_tokens,
            "level": level,
            "own_wait_s": self.own_wait_s,
            "wait_share": self.wait_s / self.work_s if self.work_s else 0.0,
        }


class Lockstep:
    """One rank's side of the agreement; `on_plan` is called with each plan before its layers run.

    The group must be able to exchange tensors on the CPU. `min_tokens` is that of `Pace`.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        on_plan: Callable[[StepPlan], None] = lambda _: None,
        min_tokens: int = 0,
    ) -> None:
        self.stats = LockstepStats()
        self.pace = Pace(min_tokens)
        self._group = group
        self._on_plan = on_plan
        self._has_left = False

    @contextmanager
    def turn(self, num_tokens: int, is_decode: bool, num_waiting: int = 0) -> Iterator[bool]:
        """Agree on a step with all ranks; run its layers in the `with` if the value is true.

        This rank brings `num_tokens`, and could begin `num_waiting` tokens of prompts in the next
        step. The value says whether any rank has tokens, so that all must run the layers.
        Raises LockstepError: another rank stopped or failed, so this one must stop too.
        """
        began = time.monotonic()
        plan = self._agree(num_tokens, is_decode, num_waiting)
        agreed = time.monotonic()
        self.pace.follow(plan.waiting, is_idle=plan.max_tokens == 0)
        self._on_plan(plan)
        try:
            yield plan.max_tokens > 0
        except BaseException:
            # The other ranks may wait in a collective of the layers, so this rank cannot tell them
            # its reason by an exchange. Aborting its side makes their collective fail.
            self._has_left = True
            self._group.abort()
            raise
        if plan.max_tokens:
            self._note(plan, num_tokens, agreed - began, time.monotonic() - began)

    @contextmanager
    def announced(self, *harmless: type[Exception]) -> Iterator[None]:
        """Tell the other ranks if this rank raises anything but a `harmless` exception."""
        try:
            yield
        except harmless:
            raise
        except BaseException as error:
            self._leave(f"{type(error).__name__}: {error}", is_failure=True)
            raise

    def stop(self) -> None:
        """Tell the other ranks that this one ends, which ends them too; twice is no error."""
        self._leave("it was closed", is_failure=False)

    def _leave(self, reason: str, *, is_failure: bool) -> None:
        if self._has_left:
            return
        self._has_left = True
        self._exchange(0, True, 0, 1 + is_failure)
        self._gather_reasons(reason)

    def _agree(self, num_tokens: int, is_decode: bool, num_waiting: int) -> StepPlan:
        """Exchange four numbers with every rank; raise if one of them has ended."""
        gathered = self._exchange(num_tokens, is_decode, num_waiting, 0)
        tokens, decodes, waiting, has_ended = zip(*gathered, strict=True)
        ends = [rank for rank, end in enumerate(has_ended) if end]
        if ends:
            self._has_left = True
            # A rank that ends sends its reason in a second exchange, in which all take part.
            reason = self._gather_reasons("")[ends[0]]
            verb = "failed" if has_ended[ends[0]] > 1 else "stopped"
            raise LockstepError(f"rank {ends[0]} of the group {verb}: {reason}")
        return StepPlan(tokens, all(decodes), waiting)

    def _exchange(self, *numbers: int) -> list[list[int]]:
        """Gather the numbers of each rank."""
        return self._gather(torch.tensor(numbers)).tolist()

    def _gather_reasons(self, reason: str) -> list[str]:
        """Gather what each rank says of its end; all ranks call this after one of them ended."""
        text = reason.encode()[:_REASON_BYTES].ljust(_REASON_BYTES)
        rows = self._gather(torch.frombuffer(bytearray(text), dtype=torch.uint8)).tolist()
        return [bytes(row).decode(errors="replace").strip() for row in rows]

    def _gather(self, own: Tensor) -> Tensor:
        """Gather a tensor [n] of every rank: [R, n].

        An all-to-all that sends the same to every rank is faster over gloo than its all-gather.
        """
        gathered = own.new_empty(self._group.size(), len(own))
        dist.all_to_all_single(gathered, own.expand_as(gathered).contiguous(), group=self._group)
        return gathered

    def _note(self, plan: StepPlan, num_tokens: int, wait_s: float, step_s: float) -> None:
        stats = self.stats
        stats.num_steps += 1
        stats.sum_mean_tokens += sum(plan.tokens) / len(plan.tokens)
        stats.sum_max_tokens += plan.max_tokens
        stats.own_tokens += num_tokens
        stats.wait_s += wait_s
        stats.own_wait_s += wait_s if num_tokens else 0.0
        stats.work_s += step_s
