"""`RankSpec`: a rank's place in a group, as Ray carries it to the rank's process. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from parallel.experts.topology import Topology


@dataclass(frozen=True)
class Address:
    """Where the store listens at which ranks meet."""

    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """A rank's place in one generation of a group."""

    address: Address
    generation: str  # such as "group-0-generation-2"
    rank: int
    num_ranks: int
    join_timeout_s: float  # for the slowest rank to start, and again for it to load
    exchange_timeout_s: float  # for the slowest rank in any exchange afterwards
    attempt: str = ""  # to start it; what one that failed left in the store is not of the next
    topologies: Mapping[int, Topology] | None = None  # by layer; None: equal shares, in order
