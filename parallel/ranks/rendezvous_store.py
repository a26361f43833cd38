"""`RendezvousStore`: the key-value store at which the ranks of a group find each other."""

from parallel.ranks.rank_spec import Address


class RendezvousStore:
    """Listens from its construction until its process ends, under a name that other machines reach.

    Whoever starts groups owns the store, and it must outlive them. Its address travels to the
    ranks through Ray, in a `RankSpec`.
    """

    def __init__(self, host: str) -> None:
        import torch.distributed as dist  # slow; a run of single ranks needs no store and no torch

        # Port 0 lets the system choose a free one.
        self._store = dist.TCPStore(host, 0, None, is_master=True, wait_for_workers=False)
        self.address = Address(host, self._store.port)
