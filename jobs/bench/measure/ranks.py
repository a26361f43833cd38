"""Run the ranks of one group as processes of this machine, joined as the ranks of a job are."""

import multiprocessing
import socket
import sys
from collections.abc import Callable
from typing import Any

from parallel.ranks.rank_spec import Address, RankSpec
from parallel.ranks.rendezvous_store import RendezvousStore

_JOIN_TIMEOUT_S = 600.0
_EXCHANGE_TIMEOUT_S = 300.0


def rank_specs(address: Address, num_ranks: int) -> list[RankSpec]:
    """Describe each rank of a group that meets at `address`."""
    return [
        RankSpec(
            address=address,
            generation=f"bench-{num_ranks}",
            rank=rank,
            num_ranks=num_ranks,
            join_timeout_s=_JOIN_TIMEOUT_S,
            exchange_timeout_s=_EXCHANGE_TIMEOUT_S,
        )
        for rank in range(num_ranks)
    ]


def run_on_ranks(work: Callable[..., None], num_ranks: int, *arguments: object) -> Any:
    """Run `work(*arguments, spec, answers)` in one process per rank; return rank 0's answer.

    Args:
        work: a function of a module, since the processes are spawned. Rank 0 puts its answer into
            the queue `answers`.
        num_ranks: how many processes.
        arguments: can be pickled.

    A rank that fails ends this program too.
    """
    store = RendezvousStore(socket.gethostbyname("localhost"))
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    processes = [
        context.Process(target=work, args=(*arguments, spec, answers))
        for spec in rank_specs(store.address, num_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            sys.exit(f"a rank ended with exit code {process.exitcode}")
    return answers.get()
