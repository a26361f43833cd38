"""`GroupSpec`: what every group of a run is made of, and how long it may take for what."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import ray

from parallel.experts.topology import Topologies
from parallel.ranks.admission import AdmissionPolicy
from parallel.ranks.rank_spec import Address, RankSpec
from parallel.ranks.rendezvous_store import RendezvousStore
from parallel.ranks.requests import Request
from parallel.ranks.worker import Engine

Placement = Literal["STRICT_PACK", "PACK", "SPREAD"]  # Ray's names


@dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """What every group of a run is made of; ValueError names a number that is out of its range."""

    # Makes the engine, in the process of each rank, so it must be picklable. It gets None where a
    # rank is alone.
    engine_factory: Callable[[RankSpec | None], Engine]
    num_ranks: int = 1
    num_cpus_per_rank: float = 1.0
    num_gpus_per_rank: float = 0.0
    placement: Placement = "STRICT_PACK"  # all ranks on one node
    max_requests: int = 4096  # at all groups together, of clients that take turns
    admission: AdmissionPolicy = field(default_factory=AdmissionPolicy)  # of each rank
    resources_timeout_s: float = 120.0  # until there are nodes with room
    start_timeout_s: float = 1800.0  # until the engines are loaded
    exchange_timeout_s: float = 120.0  # for the slowest rank in every exchange; meant for GPUs
    heartbeat_s: float = 1.0  # between two health checks of a rank
    heartbeat_timeout_s: float = 15.0  # until a rank answers one
    stall_timeout_s: float = 900.0  # of one step
    failures_at_once: int = 16  # of all groups; see `parallel.groups.failures`
    # Until a group is set apart while others go on. One row may kill a group five times before it
    # is given up, so fewer would blame the group for it.
    max_failures_in_a_row: int = 6
    long_service_s: float = 600.0  # after which a failure begins another row of failures
    topologies: Topologies | None = None  # as in `RankSpec`, for `num_ranks`
    golden: tuple[Request, ...] = ()  # see `parallel.groups.golden`; none turns the check off
    golden_every_steps: int = 2000  # of a group, between two checks

    def __post_init__(self) -> None:
        if self.num_ranks < 1:
            raise ValueError(f"num_ranks must be at least 1, got {self.num_ranks}")
        for name in ("num_cpus_per_rank", "num_gpus_per_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.bundle:
            raise ValueError("a rank needs a CPU or a GPU, or a part of one")
        for name in (
            "resources_timeout_s start_timeout_s exchange_timeout_s heartbeat_s "
            "heartbeat_timeout_s stall_timeout_s golden_every_steps failures_at_once "
            "max_failures_in_a_row long_service_s max_requests"
        ).split():
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def bundle(self) -> dict[str, float]:
        """What one rank reserves, by Ray's names of resources."""
        wanted = {"GPU": self.num_gpus_per_rank, "CPU": self.num_cpus_per_rank}
        # Ray refuses a bundle with a resource of amount 0.
        return {name: amount for name, amount in wanted.items() if amount > 0}

    def open_store(self) -> RendezvousStore | None:
        """Open the store at which ranks meet, if any do; it must live as long as the groups."""
        return None if self.num_ranks == 1 else RendezvousStore(ray.util.get_node_ip_address())

    def rank_specs(
        self, group_id: int, generation: int, address: Address | None
    ) -> list[RankSpec | None]:
        """Describe each rank for one attempt to start; a rank that is alone has None."""
        if address is None:
            assert self.num_ranks == 1
            return [None]
        attempt = secrets.token_hex(4)
        return [
            RankSpec(
                address=address,
                generation=f"group-{group_id}-generation-{generation}",
                attempt=attempt,
                rank=rank,
                num_ranks=self.num_ranks,
                join_timeout_s=self.start_timeout_s,
                exchange_timeout_s=self.exchange_timeout_s,
                topologies=self.topologies,
            )
            for rank in range(self.num_ranks)
        ]
