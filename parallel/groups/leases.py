"""`Leases`: which client has which group, and who waits for one.

A lease and its end cost O(log groups), however many clients wait: whoever ends a lease hands the
group over to those whom it serves, and wakes nobody else.
"""

import asyncio
import itertools
from collections import OrderedDict
from dataclasses import dataclass

from parallel.groups.errors import GroupError
from parallel.groups.free_groups import FreeGroups
from parallel.groups.group import EngineGroup

_LOOK_AGAIN_S = 0.5  # whether a generation is given back, which is rare


@dataclass(frozen=True)
class Client:
    """A process that leases groups.

    Ray restarts a map actor in a new process: `actor_id` stays, `process_id` changes.
    """

    process_id: str
    actor_id: str | None  # None for a process that is not an actor, such as a driver


@dataclass(frozen=True)
class _Grant:
    """One lease."""

    client: Client
    group: EngineGroup
    num_tokens: int  # of work that the client means to give to the group
    is_exclusive: bool


@dataclass(eq=False)
class _Wish:
    """A client that waits for a lease."""

    client: Client
    num_tokens: int
    is_exclusive: bool
    node_id: str | None  # whose groups come first; None: all are alike
    answer: asyncio.Future[tuple[int, EngineGroup]]  # the lease's number, and the group


@dataclass(eq=False)
class _Place:
    """What is on lease of one group; generations come and go in it."""

    group_id: int
    group: EngineGroup | None = None  # the running generation
    num_tokens: int = 0  # on lease at this generation; work of earlier ones is done elsewhere
    is_reserved: bool = False  # by a client that has the group exclusively, or waits for that
    next_wish: _Wish | None = None  # gets the group exclusively as soon as nobody else has it


class Leases:
    """The leases of all groups of a run. State changes only between awaits and needs no locks."""

    def __init__(self, num_groups: int) -> None:
        self._places = [_Place(group_id) for group_id in range(num_groups)]
        self._free = FreeGroups()  # the running groups that nobody has reserved
        self._waiting: OrderedDict[_Wish, None] = OrderedDict()  # while no group is free
        self._grants: dict[int, _Grant] = {}
        self._numbers = itertools.count()
        self._numbers_of: dict[Client, set[int]] = {}  # the leases that each client has now
        self._clients: dict[str, Client] = {}  # by actor id: its latest process
        self._error: str | None = None

    async def acquire(
        self, client: Client, num_tokens: int, *, exclusive: bool, node_id: str | None = None
    ) -> tuple[int, EngineGroup]:
        """Lease the group that `FreeGroups` chooses for a node: the lease's number, and the group.

        This waits while there is none; `exclusive` waits until nobody else has the group, and lets
        nobody in before `end`. Those who wait are served in their order, wherever they are.
        Raises GroupError: `stop` was called, or a later process of the client has taken over.
        """
        if self._error is not None:
            raise GroupError(self._error)
        answer = asyncio.get_running_loop().create_future()
        # The least-loaded group of all is the first to be empty.
        wish = _Wish(client, num_tokens, exclusive, None if exclusive else node_id, answer)
        self._waiting[wish] = None
        self._serve()
        try:
            return await answer
        except asyncio.CancelledError:
            self._withdraw(wish)
            raise

    def end(self, number: int) -> None:
        """End a lease; a lease that has already ended is no error."""
        grant = self._grants.pop(number, None)
        if grant is None:
            return
        numbers = self._numbers_of[grant.client]
        numbers.remove(number)
        if not numbers:
            del self._numbers_of[grant.client]
        place = self._places[grant.group.group_id]
        if grant.group is place.group:
            place.num_tokens -= grant.num_tokens
        if grant.is_exclusive:
            place.is_reserved = False
        elif place.next_wish is not None and not place.num_tokens:
            wish, place.next_wish = place.next_wish, None
            self._grant(wish, place)
        self._update(place)
        self._serve()

    def open(self, group: EngineGroup) -> None:
        """Lease this generation from now on."""
        place = self._places[group.group_id]
        place.group = group
        self._update(place)
        self._serve()

    def shut(self, group_id: int) -> None:
        """Lease the running generation no longer; who waits to have it alone gets another group."""
        place = self._places[group_id]
        place.group, place.num_tokens = None, 0
        self._unreserve(place)
        self._update(place)
        self._serve()

    async def until_given_back(self, group: EngineGroup) -> None:
        """Wait until nobody has a generation any more that was shut."""
        while any(grant.group is group for grant in self._grants.values()):
            await asyncio.sleep(_LOOK_AGAIN_S)

    def register(self, client: Client) -> Client | None:
        """Note the process of a client; an earlier process of its actor is dead: end its leases.

        Return that earlier process.
        """
        if client.actor_id is None:
            return None
        earlier = self._clients.get(client.actor_id)
        self._clients[client.actor_id] = client
        if earlier is None or earlier == client:
            return None
        for number in sorted(self._numbers_of.get(earlier, ())):
            self.end(number)
        return earlier

    def stop(self, reason: str) -> None:
        """Refuse everybody who waits, and everybody who comes."""
        self._error = reason
        for place in self._places:
            self._unreserve(place)
        for wish in self._waiting:
            _refuse(wish, reason)
        self._waiting.clear()

    def _serve(self) -> None:
        """Give free groups to those who wait, in their order, while there are both."""
        while self._waiting:
            wish = next(iter(self._waiting))
            group_id = self._free.first(wish.node_id, wish.num_tokens)
            if group_id is None:
                return
            del self._waiting[wish]
            place = self._places[group_id]
            if wish.is_exclusive:
                place.is_reserved = True
            if wish.is_exclusive and place.num_tokens:
                place.next_wish = wish
            else:
                self._grant(wish, place)
            self._update(place)

    def _grant(self, wish: _Wish, place: _Place) -> None:
        assert place.group is not None
        if self._is_replaced(wish.client):  # its process died while it waited here
            _refuse(wish, "this client has a successor")
        if wish.answer.done():  # refused, or cancelled
            place.is_reserved = False
            return
        number = next(self._numbers)
        place.num_tokens += wish.num_tokens
        self._grants[number] = _Grant(wish.client, place.group, wish.num_tokens, wish.is_exclusive)
        self._numbers_of.setdefault(wish.client, set()).add(number)
        wish.answer.set_result((number, place.group))

    def _withdraw(self, wish: _Wish) -> None:
        """Undo what was done for a wish whose client no longer waits for it."""
        self._waiting.pop(wish, None)
        for place in self._places:
            if place.next_wish is wish:
                place.next_wish, place.is_reserved = None, False
                self._update(place)
        if not wish.answer.cancelled() and wish.answer.exception() is None:
            self.end(wish.answer.result()[0])  # it was cancelled just after it had got the lease
        self._serve()

    def _unreserve(self, place: _Place) -> None:
        """Let the client that waits to have a group alone wait for any group, as the first."""
        if place.next_wish is not None:
            self._waiting[place.next_wish] = None
            self._waiting.move_to_end(place.next_wish, last=False)
            place.next_wish = None
            place.is_reserved = False

    def _update(self, place: _Place) -> None:
        if place.group is None or place.is_reserved:
            self._free.remove(place.group_id)
        else:
            nodes = (node.node_id for node in place.group.nodes)
            self._free.put(place.group_id, nodes, place.num_tokens)

    def _is_replaced(self, client: Client) -> bool:
        """Say whether a later process of the same actor has registered."""
        return client.actor_id is not None and self._clients[client.actor_id] != client


def _refuse(wish: _Wish, reason: str) -> None:
    if not wish.answer.done():
        wish.answer.set_exception(GroupError(reason))
