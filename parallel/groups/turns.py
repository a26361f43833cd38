"""`Turns`: how many requests are at the ranks of each node, and who sends the next ones."""

import asyncio
import itertools
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from parallel.groups.errors import GroupError
from parallel.groups.least_loaded import LeastLoaded


@dataclass(frozen=True)
class _Taken:
    """One turn."""

    process_id: str  # of the client
    node_id: str  # whose room it takes
    num_requests: int


@dataclass(eq=False)
class _Wish:
    """A client that waits for its turn."""

    process_id: str
    node_id: str  # of the client
    num_requests: int
    number: int  # those that come later have greater ones
    answer: asyncio.Future[tuple[int, str]]  # the turn's number, and the node whose room it takes


class Turns:
    """Room for so many requests at all ranks together; each node has a share by its ranks.

    The clients of a node take its room in their order. If none of them waits, the node runs dry,
    and whoever has waited longest anywhere takes it. Clients of nodes without ranks take that of
    any node, in order with its own clients. So nobody waits while a node has room, nobody waits
    forever, and requests leave their node only for one that has none of its own.

    A turn and its end cost O(log nodes). State changes only between awaits and needs no locks.
    """

    def __init__(self, num_requests: int) -> None:
        self._num_requests = num_requests
        self._num_ranks: Counter[str] = Counter()  # by node
        self._share: dict[str, float] = {}  # of each node with ranks
        self._used: Counter[str] = Counter()  # by node
        self._index: dict[str, int] = {}  # of each node that ever had ranks
        self._nodes: list[str] = []  # by index
        self._fullness = LeastLoaded()  # of the nodes with ranks, by requests beyond their share
        self._waiting: OrderedDict[_Wish, None] = OrderedDict()
        # The same by node; "" has those of all nodes without ranks.
        self._waiting_at: dict[str, OrderedDict[_Wish, None]] = {}
        self._turns: dict[int, _Taken] = {}
        self._numbers = itertools.count()
        self._error: str | None = None

    def add_ranks(self, nodes: Sequence[str]) -> None:
        """Divide the room anew: ranks serve from now on, on these nodes."""
        self._num_ranks.update(nodes)
        self._divide()

    def remove_ranks(self, nodes: Sequence[str]) -> None:
        """Divide the room anew: these ranks serve no longer."""
        self._num_ranks.subtract(nodes)
        self._divide()

    async def acquire(self, process_id: str, node_id: str, num_requests: int) -> tuple[int, str]:
        """Wait for room for so many requests: the turn's number, and the node whose room it is.

        A node has room for any number while it has fewer than its share. So it may have one batch
        more than that, and nobody who needs much waits until others need little.
        Raises GroupError: `stop` was called.
        """
        if self._error is not None:
            raise GroupError(self._error)
        answer = asyncio.get_running_loop().create_future()
        wish = _Wish(process_id, node_id, num_requests, next(self._numbers), answer)
        self._waiting[wish] = None
        self._queue_of(wish)[wish] = None
        if node_id in self._share:
            self._serve(node_id)
        emptiest = self._fullness.first()
        if emptiest is not None and not answer.done():
            self._serve(self._nodes[emptiest[1]])
        try:
            return await answer
        except asyncio.CancelledError:
            self._forget(wish)
            if not answer.cancelled() and answer.exception() is None:
                self.end(answer.result()[0])  # it was cancelled just after it had got its turn
            raise

    def end(self, number: int) -> None:
        """End a turn; one that has already ended is no error."""
        turn = self._turns.pop(number, None)
        if turn is None:
            return
        self._used[turn.node_id] -= turn.num_requests
        if not self._used[turn.node_id]:
            del self._used[turn.node_id]
        if turn.node_id in self._share:
            self._note(turn.node_id)
            self._serve(turn.node_id)

    def end_all_of(self, process_id: str) -> None:
        """End the turns of a client that is dead, and let it wait no longer."""
        for wish in [each for each in self._waiting if each.process_id == process_id]:
            self._forget(wish)
            _refuse(wish, "this client has a successor")
        for number in [n for n, turn in self._turns.items() if turn.process_id == process_id]:
            self.end(number)

    def stop(self, reason: str) -> None:
        """Refuse everybody who waits, and everybody who comes."""
        self._error = reason
        for wish in self._waiting:
            _refuse(wish, reason)
        self._waiting.clear()
        self._waiting_at.clear()

    def _divide(self) -> None:
        self._num_ranks = +self._num_ranks  # without those that have none
        for node_id in self._share.keys() - self._num_ranks.keys():
            self._fullness.remove(self._index[node_id])
        of_a_rank = self._num_requests / max(1, self._num_ranks.total())
        self._share = {node: number * of_a_rank for node, number in self._num_ranks.items()}
        self._waiting_at = {}
        for wish in self._waiting:
            self._queue_of(wish)[wish] = None
        for node_id in self._share:
            if node_id not in self._index:
                self._index[node_id] = len(self._nodes)
                self._nodes.append(node_id)
            self._note(node_id)
        for node_id in self._share:
            self._serve(node_id)

    def _serve(self, node_id: str) -> None:
        """Give the room of a node to those who wait, while both last."""
        while (wish := self._next_at(node_id)) is not None:
            if self._used[node_id] >= self._share[node_id]:
                return
            self._forget(wish)
            if wish.answer.done():  # it was cancelled
                continue
            self._turns[wish.number] = _Taken(wish.process_id, node_id, wish.num_requests)
            self._used[node_id] += wish.num_requests
            self._note(node_id)
            wish.answer.set_result((wish.number, node_id))

    def _next_at(self, node_id: str) -> _Wish | None:
        """Return who gets the room of a node next; None if nobody waits anywhere."""
        own, homeless = self._waiting_at.get(node_id), self._waiting_at.get("")
        heads = [next(iter(queue)) for queue in (own, homeless) if queue]
        return (
            min(heads, key=lambda wish: wish.number) if heads else next(iter(self._waiting), None)
        )

    def _note(self, node_id: str) -> None:
        beyond = self._used[node_id] - self._share[node_id]
        self._fullness.put(self._index[node_id], beyond)

    def _queue_of(self, wish: _Wish) -> OrderedDict[_Wish, None]:
        where = wish.node_id if wish.node_id in self._share else ""
        return self._waiting_at.setdefault(where, OrderedDict())

    def _forget(self, wish: _Wish) -> None:
        self._waiting.pop(wish, None)
        self._queue_of(wish).pop(wish, None)


def _refuse(wish: _Wish, reason: str) -> None:
    if not wish.answer.done():
        wish.answer.set_exception(GroupError(reason))
