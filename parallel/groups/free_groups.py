"""`FreeGroups`: which group a client gets, so that prompts stay on its node while that is fair."""

from collections.abc import Iterable

from parallel.groups.least_loaded import LeastLoaded


class FreeGroups:
    """The groups that can be leased, by their tokens on lease: all of them, and those of each node.

    A change costs O(log groups) for each node of the group; asking is free.
    """

    def __init__(self) -> None:
        self._all = LeastLoaded()
        # A node that is gone leaves its tree behind, which is as small as its groups were few.
        self._of_node: dict[str, LeastLoaded] = {}
        self._nodes: dict[int, frozenset[str]] = {}  # of each group that takes part

    def put(self, group_id: int, nodes: Iterable[str], num_tokens: int) -> None:
        """Let a group on these nodes take part with its tokens, or change them."""
        now = frozenset(nodes)
        for node_id in self._nodes.get(group_id, now) - now:
            self._of_node[node_id].remove(group_id)
        self._nodes[group_id] = now
        self._all.put(group_id, num_tokens)
        for node_id in now:
            self._of_node.setdefault(node_id, LeastLoaded()).put(group_id, num_tokens)

    def remove(self, group_id: int) -> None:
        """Let a group take part no longer; one that does not take part is no error."""
        self._all.remove(group_id)
        for node_id in self._nodes.pop(group_id, ()):
            self._of_node[node_id].remove(group_id)

    def first(self, node_id: str | None, num_tokens: int) -> int | None:
        """Return the group for so many tokens from a node; None if no group takes part.

        It is the least-loaded group of that node, unless another node runs dry: unless that group
        has more tokens on lease than twice those of the least-loaded group of all, and `num_tokens`
        more. Clients have twice as much in flight as engines can run at a time, so a group that
        has half as much as others still has all that it can run.
        """
        least = self._all.first()
        if least is None:
            return None
        here = None if node_id not in self._of_node else self._of_node[node_id].first()
        if here is not None and here[0] <= 2 * least[0] + num_tokens:
            return here[1]
        return least[1]
