"""Which ranks meet in a real store; no process group is made."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from parallel.groups.spec import GroupSpec
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.rendezvous import JoinedGroup
from parallel.ranks.rendezvous_store import RendezvousStore

SPEC = GroupSpec(
    engine_factory=lambda _: pytest.fail("nobody loads an engine here"),
    num_ranks=2,
    start_timeout_s=1.0,
)


class MetError(Exception):
    """All ranks have met, and the process group would be made next."""


def meets(rank_spec: RankSpec | None) -> bool:
    assert rank_spec is not None
    try:
        JoinedGroup(rank_spec, torch.device("cpu"))
    except MetError:
        return True
    except dist.DistStoreError:
        return False
    raise AssertionError("there is no process group to join")


def test_a_second_attempt_to_start_a_generation_never_meets_the_ranks_of_the_first(monkeypatch):
    def init_process_group(*_, **__):
        raise MetError

    monkeypatch.setattr(dist, "init_process_group", init_process_group)
    store = RendezvousStore("127.0.0.1")
    first, second = (SPEC.rank_specs(0, 1, store.address) for _ in range(2))
    with ThreadPoolExecutor(SPEC.num_ranks) as pool:
        assert all(pool.map(meets, first))
    assert not meets(second[0])
