"""`JoinedGroup`: how a rank finds the other ranks of its group.

All ranks meet at the store of `parallel.ranks.rendezvous_store`. Each attempt to start a generation
of a group uses a prefix of its own there. So a rank of a dead generation, or of an attempt that
failed, can never join the living ranks.
"""

from datetime import timedelta

import torch
import torch.distributed as dist

from parallel.ranks.rank_spec import RankSpec


class JoinedGroup:
    """A rank that has joined the process group of its group.

    Ranks exchange tensors on `device`, and tensors on the CPU as well. Raises DistError: another
    rank did not come within `join_timeout_s`.
    """

    def __init__(self, rank_spec: RankSpec, device: torch.device) -> None:
        self._rank_spec = rank_spec
        address = rank_spec.address
        timeout = timedelta(seconds=rank_spec.join_timeout_s)
        # The client takes the timeout too. With torch's default, the other ranks would wait long
        # for a rank that dies while they join.
        store = dist.TCPStore(address.host, address.port, None, is_master=False, timeout=timeout)
        self._store = dist.PrefixStore(f"{rank_spec.generation}-{rank_spec.attempt}", store)
        on_gpu = device.type == "cuda"
        # Starting may take as long as `join_timeout_s` allows, but `init_process_group` waits only
        # for `exchange_timeout_s`. So all ranks are known to be here before it is called.
        self._wait_for_all("started")
        dist.init_process_group(
            # The plan of a step is exchanged on the CPU (`lockstep`), hence gloo beside NCCL.
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("exchange", self._store),
            rank=rank_spec.rank,
            world_size=rank_spec.num_ranks,
            timeout=timedelta(seconds=rank_spec.exchange_timeout_s),
            # Binds the group to this GPU: NCCL would otherwise guess it from the rank's number.
            device_id=device if on_gpu else None,
        )
        assert dist.group.WORLD is not None
        self.group: dist.ProcessGroup = dist.group.WORLD

    def wait_until_all_loaded(self) -> None:
        """Return when every rank has called this; loading may take much longer than an exchange."""
        self._wait_for_all("loaded")

    def _wait_for_all(self, stage: str) -> None:
        ranks = range(self._rank_spec.num_ranks)
        self._store.set(f"{stage}-{self._rank_spec.rank}", "here")
        timeout = timedelta(seconds=self._rank_spec.join_timeout_s)
        self._store.wait([f"{stage}-{rank}" for rank in ranks], timeout)
