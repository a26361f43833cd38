"""`GroupSpec`: what every group of a run is made of, its patience, and the seats of its ranks."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import ray

from parallel.experts.topology import Topology
from parallel.ranks.rank_spec import Address, RankSpec
from parallel.ranks.worker import AdmissionPolicy, Engine, Request

if TYPE_CHECKING:
    from parallel.ranks.rendezvous import RendezvousStore

Placement = Literal["STRICT_PACK", "PACK", "SPREAD"]


@dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """What every group of a run is made of.

    Raises:
        ValueError: a number is out of its range; the message names it.
    """

    # Picklable; runs in each rank's process, with the rank's seat where there are several.
    engine_factory: Callable[[RankSpec | None], Engine]
    num_ranks: int = 1
    num_cpus_per_rank: float = 1.0
    num_gpus_per_rank: float = 0.0
    placement: Placement = "STRICT_PACK"  # all ranks on one node
    company: AdmissionPolicy = field(default_factory=AdmissionPolicy)  # as for `Rank`
    resources_timeout_s: float = 120.0  # for nodes with room
    start_timeout_s: float = 1800.0  # for the engines to load
    exchange_timeout_s: float = 120.0  # for the slowest rank, in every exchange; for GPUs
    heartbeat_s: float = 1.0  # between two looks at a rank
    heartbeat_timeout_s: float = 15.0  # for a rank to answer
    stall_timeout_s: float = 900.0  # for one step
    topologies: Mapping[int, Topology] | None = None  # as in `RankSpec`, for `num_ranks`
    golden: tuple[Request, ...] = ()  # as `parallel.groups.golden`; none turns the check off
    golden_tolerance: float = 0.25  # nats
    golden_every_steps: int = 2000  # of a group, between two askings

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
            "heartbeat_timeout_s stall_timeout_s golden_tolerance golden_every_steps"
        ).split():
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def bundle(self) -> dict[str, float]:
        """What one rank reserves, in Ray's words."""
        wanted = {"GPU": self.num_gpus_per_rank, "CPU": self.num_cpus_per_rank}
        return {name: amount for name, amount in wanted.items() if amount > 0}

    def open_store(self) -> "RendezvousStore | None":
        """Where the ranks of all groups find each other; must live as long as the groups."""
        if self.num_ranks == 1:
            return None
        from parallel.ranks.rendezvous import (
            RendezvousStore,  # torch, which a run of single ranks needs not
        )

        return RendezvousStore(ray.util.get_node_ip_address())

    def seats(
        self, group_id: int, generation: int, address: Address | None
    ) -> list[RankSpec | None]:
        """The place of each rank, for one try to start; None for a rank that is alone."""
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
