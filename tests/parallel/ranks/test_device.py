"""What a GPU would run, on meta tensors: they have no numbers, so every read by the host shows."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from model.network.kernels.grouped_experts import GroupedExperts
from model.network.moe import Experts
from parallel.experts.dispatch import AllGatherDispatcher, AllToAllDispatcher
from parallel.experts.topology import Topology
from tests.parallel.rank_threads import run_ranks

META = torch.device("meta")
NUM_RANKS, NUM_TOKENS, HIDDEN, TOP_K = 4, 7, 32, 6
TOPOLOGY = Topology.even(64, NUM_RANKS)


@pytest.fixture
def fake_group() -> Iterator[dist.ProcessGroup]:
    """A process group of torch whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=NUM_RANKS)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.empty(NUM_TOKENS, HIDDEN, device=META, dtype=torch.bfloat16)
    expert_ids = torch.empty(NUM_TOKENS, TOP_K, device=META, dtype=torch.int64)
    return x, expert_ids, torch.empty(NUM_TOKENS, TOP_K, device=META)


def plain_experts() -> nn.Module:
    return Experts(TOPOLOGY.num_local_experts, HIDDEN, 16).to(META, torch.bfloat16)


def grouped_experts() -> nn.Module:
    experts = Experts(TOPOLOGY.num_local_experts, HIDDEN, 16).to(META, torch.bfloat16)
    return GroupedExperts(experts.requires_grad_(False))


@pytest.mark.parametrize("experts", [plain_experts, grouped_experts])
@pytest.mark.parametrize("wire", ["auto", "float8"])
def test_all_gather_never_waits_for_the_device(fake_group, wire, experts):
    dispatcher = AllGatherDispatcher(
        TOPOLOGY.num_local_experts, fake_group, bucket=16, wire_dtype=wire
    )
    with torch.device(META):
        dispatch = dispatcher.dispatch(*tokens())
        assert [len(each) for each in dispatch.arrived] == [NUM_RANKS * 16] * 3
        home = dispatch.combine(experts()(*dispatch.arrived))
    assert (home.shape, home.dtype) == ((NUM_TOKENS, HIDDEN), torch.bfloat16)


@pytest.mark.parametrize("experts", [plain_experts, grouped_experts])
@pytest.mark.parametrize("wire", ["auto", "float8"])
def test_all_to_all_waits_for_the_device_once(fake_group, monkeypatch, wire, experts):
    waits = []

    def tolist(tensor):
        waits.append(tensor)
        return [2, 3, 4, 1, 5, 0, 2, 1]  # rows sent, rows that arrive

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    dispatcher = AllToAllDispatcher(TOPOLOGY.num_local_experts, fake_group, wire)
    with torch.device(META):
        dispatch = dispatcher.dispatch(*tokens())
        assert [len(each) for each in dispatch.arrived] == [8] * 3
        home = dispatch.combine(experts()(*dispatch.arrived))
    assert home.shape == (NUM_TOKENS, HIDDEN)
    assert len(waits) == 1


def test_a_row_crosses_to_a_rank_at_most_once():
    def on_rank(group: dist.ProcessGroup) -> None:
        generator = torch.Generator().manual_seed(group.rank())
        expert_ids = torch.rand(50, 64, generator=generator).topk(TOP_K).indices
        dispatcher = AllToAllDispatcher(TOPOLOGY.num_local_experts, group)
        dispatch = dispatcher.dispatch(torch.ones(50, 4), expert_ids, torch.ones(50, TOP_K))
        owners = [{expert // 16 for expert in token} for token in expert_ids.tolist()]
        to_rank = [sum(rank in ranks for ranks in owners) for rank in range(NUM_RANKS)]
        assert dispatch.counts.sent_rows == to_rank
        dispatch.combine(dispatch.arrived[0].contiguous())

    run_ranks(NUM_RANKS, on_rank)
