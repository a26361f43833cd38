"""Run the ranks of one group as processes of this machine, joined as the ranks of a job are."""

import multiprocessing
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from parallel.ranks.rank_spec import Address, RankSpec
from parallel.ranks.rendezvous_store import RendezvousStore

T = TypeVar("T")


def rank_specs(address: Address, num_ranks: int) -> list[RankSpec]:
    """Describe each rank of a group that meets at `address`."""
    return [
        RankSpec(
            address=address,
            generation=f"bench-{num_ranks}",
            rank=rank,
            num_ranks=num_ranks,
            join_timeout_s=600.0,
            exchange_timeout_s=300.0,
        )
        for rank in range(num_ranks)
    ]


def run_on_ranks(work: Callable[..., T], num_ranks: int, *arguments: object) -> T:
    """Run `work(*arguments, spec)` in one spawned process per rank; return the answer of rank 0."""
    store = RendezvousStore(socket.gethostbyname("localhost"))
    with ProcessPoolExecutor(num_ranks, multiprocessing.get_context("spawn")) as processes:
        specs = rank_specs(store.address, num_ranks)
        answers = [processes.submit(work, *arguments, spec) for spec in specs]
        first, *_ = [answer.result() for answer in answers]
        return first
