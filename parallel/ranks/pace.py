"""`Pace`: lets all ranks of a group begin prompts in the same steps.

Sequences end at different times, so room for new prompts appears on different ranks in different
steps. A step takes as long as its busiest rank. If each rank began a prompt as soon as it has room,
many steps would be long, with most ranks idle in them. So prompts are held until every rank can
begin some, and no rank begins many more tokens than the rank that can begin fewest. Where steps
that only decode are replayed as CUDA graphs, prompts are held until they fill a step on every rank.
"""

from collections.abc import Sequence

MAX_HELD_STEPS = 8  # how long prompts are held for a rank that can begin none
MAX_GATHERING_STEPS = 16  # how long they are held until they fill a step


class Pace:
    """One rank's copy. All ranks give theirs the same numbers, so all have the same `limit`.

    Prompts are held until every rank can begin `min_tokens` of them, or has waited long enough.
    """

    def __init__(self, min_tokens: int = 0) -> None:
        self._min_tokens = min_tokens
        self.limit = 0  # `max_new_tokens` of `Scheduler.plan`, for the next step
        self._num_held_steps = 0  # since the first of the held prompts could have begun

    def follow(self, waiting: Sequence[int], *, is_idle: bool) -> None:
        """Set `limit` from the tokens of prompts that each rank could begin in the next step.

        When no rank computed anything in this step (`is_idle`), nothing is held: there is nothing
        to disturb.
        """
        able = [tokens for tokens in waiting if tokens]
        all_are = len(able) == len(waiting)
        lacks_ranks = not all_are and self._num_held_steps < MAX_HELD_STEPS
        lacks_tokens = bool(able) and min(able) < self._min_tokens
        gathers = lacks_tokens and self._num_held_steps < MAX_GATHERING_STEPS
        is_held = bool(able) and not is_idle and (lacks_ranks or gathers)
        self._num_held_steps = self._num_held_steps + 1 if is_held else 0
        self.limit = 0 if is_held or not able else min(able)
