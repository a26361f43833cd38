"""`Pace`: when the ranks of a group begin prompts: all together.

Sequences end when they like, so places for new prompts come free on different ranks in different
steps. A step takes as long as its busiest rank: prompts begun wherever there is a place would make
many long steps in which most ranks have little to do. So they are held until every rank can begin
some, and no rank begins many more tokens than the one that can begin fewest.
"""

from collections.abc import Sequence

PATIENCE_STEPS = 8  # that prompts are held for a rank that can begin none


class Pace:
    """One rank's copy; all ranks tell theirs the same, so all have the same `limit`."""

    def __init__(self) -> None:
        self.limit = 0  # as `Scheduler.plan`'s `max_new_tokens`, for the next step
        self._num_held = 0  # steps since the first of them was held

    def follow(self, waiting: Sequence[int], *, is_idle: bool) -> None:
        """Take note of a step.

        Args:
            waiting: for each rank, tokens of prompts that it could begin in the next step.
            is_idle: nobody computed anything in this step, so there is nothing to wait for.
        """
        able = [tokens for tokens in waiting if tokens]
        all_are = len(able) == len(waiting)
        is_held = bool(able) and not all_are and not is_idle and self._num_held < PATIENCE_STEPS
        self._num_held = self._num_held + 1 if is_held else 0
        self.limit = 0 if is_held or not able else min(able)
