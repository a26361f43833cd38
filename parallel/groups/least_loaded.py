"""`LeastLoaded`: which group has the fewest tokens on lease, in O(log groups)."""

import math

_NOBODY: tuple[float, int] = (math.inf, -1)


class LeastLoaded:
    """A tournament tree over groups: a change replays the matches above one leaf, asking is free.

    Node n has the children 2n and 2n + 1, the root is 1, and the leaves come last. Each node holds
    the winner below it, as (tokens, group), so that of equals the lowest number wins. A group gets
    the next leaf when it first takes part and keeps it; the tree doubles when leaves run out.
    """

    def __init__(self) -> None:
        self._winners = [_NOBODY] * 2
        self._leaf_of: dict[int, int] = {}  # group -> its leaf, counted from 0

    def put(self, group_id: int, num_tokens: float) -> None:
        """Let a group take part with its tokens, or change them."""
        if group_id not in self._leaf_of:
            self._leaf_of[group_id] = len(self._leaf_of)
            if len(self._leaf_of) > self._num_leaves:
                self._double()
        node = self._num_leaves + self._leaf_of[group_id]
        self._winners[node] = (num_tokens, group_id)
        while node > 1:
            node //= 2
            self._winners[node] = min(self._winners[2 * node], self._winners[2 * node + 1])

    def remove(self, group_id: int) -> None:
        """Let a group take part no longer; one that does not take part is no error."""
        if group_id in self._leaf_of:
            self.put(group_id, math.inf)

    def first(self) -> tuple[float, int] | None:
        """Return the group with the fewest tokens, as (tokens, group); None if none takes part."""
        return None if self._winners[1][0] == math.inf else self._winners[1]

    @property
    def _num_leaves(self) -> int:
        return len(self._winners) // 2

    def _double(self) -> None:
        """Give the tree twice as many leaves; what it holds moves below the left child."""
        leaves = self._winners[self._num_leaves :]
        self._winners = [_NOBODY] * (2 * self._num_leaves) + leaves + [_NOBODY] * len(leaves)
        for node in range(self._num_leaves - 1, 0, -1):
            self._winners[node] = min(self._winners[2 * node], self._winners[2 * node + 1])
