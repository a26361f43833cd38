"""`Leases`: who has leased which group. Plain bookkeeping; nothing here waits."""

import itertools
from dataclasses import dataclass

from parallel.groups.group import EngineGroup


@dataclass(frozen=True)
class Client:
    """A process that leases groups.

    Ray restarts a map actor in a new process: `actor_id` stays, `process_id` changes.
    """

    process_id: str
    actor_id: str | None  # None for a process that is not an actor, such as a driver


@dataclass(frozen=True)
class Grant:
    """One lease."""

    client: Client
    group: EngineGroup
    num_tokens: int  # of work that the client means to give to the group
    is_exclusive: bool


class Leases:
    """The leases of all groups of a run."""

    def __init__(self) -> None:
        self._grants: dict[int, Grant] = {}
        self._numbers = itertools.count()
        self._clients: dict[str, Client] = {}  # by actor id: its latest process

    def add(self, grant: Grant) -> int:
        """Note a lease and return its number."""
        number = next(self._numbers)
        self._grants[number] = grant
        return number

    def end(self, number: int) -> Grant | None:
        """End a lease and return it; None if it has ended before."""
        return self._grants.pop(number, None)

    def num_tokens(self, group: EngineGroup | None) -> int:
        """Sum the tokens on lease at this generation; work of earlier ones is done elsewhere."""
        return sum(grant.num_tokens for grant in self._grants.values() if grant.group is group)

    def register(self, client: Client) -> Client | None:
        """Note the process of a client; return the earlier process of its actor, which is dead."""
        if client.actor_id is None:
            return None
        earlier = self._clients.get(client.actor_id)
        self._clients[client.actor_id] = client
        return None if earlier == client else earlier

    def is_replaced(self, client: Client) -> bool:
        """Say whether a later process of the same actor has registered."""
        return client.actor_id is not None and self._clients[client.actor_id] != client

    def numbers_of(self, client: Client) -> list[int]:
        """List the leases of a client."""
        return [number for number, grant in self._grants.items() if grant.client == client]
