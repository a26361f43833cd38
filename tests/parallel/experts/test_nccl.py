"""Dispatchers over NCCL, one process a GPU; run where there are two or more."""

import multiprocessing

import pytest
import torch

from model.network.moe import LocalDispatcher
from parallel.experts.dispatch import AllGatherDispatcher, AllToAllDispatcher
from parallel.experts.shards import ByExpert
from parallel.experts.topology import Topology
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.rendezvous import JoinedGroup, RendezvousStore

NUM_EXPERTS, TOP_K, HIDDEN = 64, 6, 256
pytestmark = pytest.mark.gpu


def on_rank(seat: RankSpec) -> None:
    device = torch.device(f"cuda:{seat.rank}")
    torch.cuda.set_device(device)
    group = JoinedGroup(seat, device).group
    topology = Topology.even(NUM_EXPERTS, seat.num_ranks)
    generator = torch.Generator().manual_seed(seat.rank)
    num_tokens = 5 * seat.rank  # rank 0 is idle
    x = torch.randn(num_tokens, HIDDEN, generator=generator).to(device)
    expert_ids = torch.rand(num_tokens, NUM_EXPERTS, generator=generator).topk(TOP_K).indices
    tokens = (x, expert_ids.to(device), torch.rand(num_tokens, TOP_K).to(device))
    local = LocalDispatcher(NUM_EXPERTS).dispatch(*tokens)
    number = torch.arange(NUM_EXPERTS, device=device).repeat_interleave(local.rows_per_expert)
    expected = local.combine(local.rows + number[:, None])
    for dispatcher in (
        AllToAllDispatcher(topology.num_held, group),
        AllGatherDispatcher(topology.num_held, group, bucket=5 * seat.num_ranks),
    ):
        by_expert = ByExpert(dispatcher, topology.slots(seat.rank).to(device))
        dispatch = by_expert.dispatch(*tokens)
        held = torch.tensor(topology.held[seat.rank], device=device)
        number = held.repeat_interleave(dispatch.rows_per_expert)
        y = dispatch.rows.clone()
        y[: len(number)] += number[:, None]
        torch.testing.assert_close(dispatch.combine(y), expected)


def test_dispatchers_over_nccl_equal_the_local_one():
    num_ranks = 2 if torch.cuda.device_count() < 4 else 4
    meeting = RendezvousStore("127.0.0.1")
    seats = [
        RankSpec(
            address=meeting.address,
            generation="test",
            rank=rank,
            num_ranks=num_ranks,
            join_timeout_s=120,
            exchange_timeout_s=60,
        )
        for rank in range(num_ranks)
    ]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=on_rank, args=(seat,)) for seat in seats]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * num_ranks
