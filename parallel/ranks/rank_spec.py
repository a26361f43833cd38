"""`RankSpec`: a rank's place in a group, as Ray carries it to the rank's process.

This module does not import torch: supervisors make rank specs too.
"""

from dataclasses import dataclass

from parallel.experts.topology import Topologies


@dataclass(frozen=True)
class Address:
    """The address of the rendezvous store."""

    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """A rank's place in one generation of a group."""

    address: Address  # of the rendezvous store
    generation: str  # such as "group-0-generation-2"
    rank: int
    num_ranks: int
    join_timeout_s: float  # for the slowest rank to start, and once more for it to load
    exchange_timeout_s: float  # for the slowest rank in any exchange afterwards
    # Names one attempt to start the generation. The entries that a failed attempt left in the
    # store belong to another name, so the next attempt does not read them.
    attempt: str = ""
    topologies: Topologies | None = None  # None: the experts are divided equally, in their order
