"""How the ranks of a group find each other: a store at an address that travels through Ray.

The store belongs to whoever starts groups and outlives them. Each try to start a generation of a
group has a prefix of its own in it, so that a rank of a dead generation, or of a try that failed,
can never join the living.
"""

from datetime import timedelta

import torch
import torch.distributed as dist

from parallel.ranks.rank_spec import Address, RankSpec


class RendezvousStore:
    """The store's side: listens from construction to the end of the process."""

    def __init__(self, host: str) -> None:
        self._store = dist.TCPStore(host, 0, None, is_master=True, wait_for_workers=False)
        self.address = Address(host, self._store.port)


class JoinedGroup:
    """A rank that has joined its group.

    Args:
        seat: which place to take.
        device: of the tensors that will be exchanged; those on the CPU always can be.
    """

    def __init__(self, seat: RankSpec, device: torch.device) -> None:
        self._seat = seat
        address = seat.address
        patience = timedelta(seconds=seat.join_timeout_s)
        # The time-out here too: without it a rank that dies while others join holds them for long.
        store = dist.TCPStore(address.host, address.port, None, is_master=False, timeout=patience)
        self._store = dist.PrefixStore(f"{seat.generation}-{seat.attempt}", store)
        on_gpu = device.type == "cuda"
        self._meet("started")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("exchange", self._store),
            rank=seat.rank,
            world_size=seat.num_ranks,
            timeout=timedelta(seconds=seat.exchange_timeout_s),
            device_id=device if on_gpu else None,
        )
        assert dist.group.WORLD is not None
        self.group: dist.ProcessGroup = dist.group.WORLD

    def wait_until_all_loaded(self) -> None:
        """Return when every rank has called this; loading may take much longer than an exchange."""
        self._meet("loaded")

    def _meet(self, place: str) -> None:
        ranks = range(self._seat.num_ranks)
        self._store.set(f"{place}-{self._seat.rank}", "here")
        patience = timedelta(seconds=self._seat.join_timeout_s)
        self._store.wait([f"{place}-{rank}" for rank in ranks], patience)
