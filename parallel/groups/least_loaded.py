"""`LeastLoaded`: which group has the fewest tokens on lease, in O(log groups)."""

import math


class LeastLoaded:
    """A tournament tree over groups: a change replays the matches above one leaf, asking is free.

    Node n has the children 2n and 2n + 1, the root is 1, and the leaves come last. Each node holds
    the winner below it, as (tokens, group), so that of equals the lowest number wins.
    """

    def __init__(self, num_groups: int) -> None:
        self._num_leaves = 1 << (num_groups - 1).bit_length()
        self._winners = [(math.inf, -1)] * (2 * self._num_leaves)

    def put(self, group_id: int, num_tokens: float) -> None:
        """Let a group take part with its tokens, or change them."""
        node = self._num_leaves + group_id
        self._winners[node] = (num_tokens, group_id)
        while node > 1:
            node //= 2
            self._winners[node] = min(self._winners[2 * node], self._winners[2 * node + 1])

    def remove(self, group_id: int) -> None:
        """Let a group take part no longer; one that does not take part is no error."""
        self.put(group_id, math.inf)

    def first(self) -> int | None:
        """Return the group with the fewest tokens; None if no group takes part."""
        num_tokens, group_id = self._winners[1]
        return None if num_tokens == math.inf else group_id
