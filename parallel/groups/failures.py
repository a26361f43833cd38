"""`Failures`: what has failed so far, and whether a group or the whole run should end for it."""

from collections import Counter
from collections.abc import Callable

from parallel.groups.spec import GroupSpec

_DAY_S = 86_400.0
# Of each group that is in service, at once. With six in a row until a group is set apart, half of
# the groups may be on their way there, and a fault of all groups stops the job in four rounds.
_AT_ONCE_PER_GROUP = 3
_NUM_TOLD = 5  # of the groups that were set apart, in the error that stops the job


class Failures:
    """Counts the failures of groups against a rate, and those of one group in a row.

    The rate is a leaky bucket: each failure adds one, and `max_per_group_day` times the groups in
    service leave it a day. So a long run of many groups may have many failures, and yet many at
    once stop it at any time. Failures that set a group apart leave the bucket with it.
    """

    def __init__(
        self,
        spec: GroupSpec,
        num_groups: int,
        max_per_group_day: float,
        clock: Callable[[], float],  # in seconds
    ) -> None:
        self.texts: list[str] = []  # all so far, oldest first
        self.set_apart: dict[int, str] = {}  # group -> its last failure, while it is set apart
        self._spec = spec
        self._num_groups = num_groups
        self._max_per_group_day = max_per_group_day
        self._clock = clock
        self._level = 0.0  # of the bucket
        self._counted_at = clock()
        self._in_a_row: Counter[int] = Counter()  # by group
        self._served_since: dict[int, float] = {}  # of the groups that are running

    def note_start(self, group_id: int) -> None:
        """Note that a group serves from now on, or again."""
        self.set_apart.pop(group_id, None)
        self._served_since[group_id] = self._clock()

    def add(self, group_id: int, reason: str) -> None:
        """Count the death of a group, or a start that failed."""
        self.texts.append(reason)
        now = self._clock()
        days = (now - self._counted_at) / _DAY_S
        self._counted_at = now
        forgiven = self._max_per_group_day * self._num_in_service * days
        self._level = max(0.0, self._level - forgiven) + 1
        if now - self._served_since.pop(group_id, now) >= self._spec.long_service_s:
            del self._in_a_row[group_id]
        self._in_a_row[group_id] += 1

    def is_repeated(self, group_id: int) -> bool:
        """Say whether a group has failed so often in a row that the group is the cause."""
        return self._in_a_row[group_id] >= self._spec.max_failures_in_a_row

    def set_group_apart(self, group_id: int) -> str:
        """Take a group and its failures out of the count; return the text about it."""
        num_failures = self._in_a_row.pop(group_id)
        self._level = max(0.0, self._level - num_failures)
        text = (
            f"{self.texts[-1]}; group {group_id} is set apart after {num_failures} failures in a "
            "row, and the others go on"
        )
        self.texts[-1] = self.set_apart[group_id] = text
        return text

    def excess(self) -> str | None:
        """Say what is too much if the failures are too many; None if they are not."""
        at_once = max(self._spec.failures_at_once, _AT_ONCE_PER_GROUP * self._num_in_service)
        if self._level <= at_once:
            return None
        allowed = f"{at_once} at once and {self._max_per_group_day:g} a group and day"
        apart = "; ".join([*self.set_apart.values()][-_NUM_TOLD:])
        return (
            f"groups failed {len(self.texts)} times, more than the allowed {allowed}; the last "
            f"failure: {self.texts[-1]}. {f'Before that: {apart}. ' if apart else ''}What is "
            "committed is safe. Find the cause (if it is memory, run fewer sequences at a time), "
            "and run the same command again to continue"
        )

    @property
    def _num_in_service(self) -> int:
        return self._num_groups - len(self.set_apart)
