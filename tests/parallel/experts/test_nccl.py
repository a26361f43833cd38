"""Dispatchers over NCCL, one process per GPU; this needs two GPUs or more."""

import multiprocessing

import pytest
import torch

from model.network.moe import Dispatch, LocalDispatcher, RowsByExpert
from parallel.experts.dispatch import AllGatherDispatcher, AllToAllDispatcher
from parallel.experts.topology import Topology
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.rendezvous import JoinedGroup
from parallel.ranks.rendezvous_store import RendezvousStore

NUM_EXPERTS, TOP_K, HIDDEN = 64, 6, 256
pytestmark = pytest.mark.gpu(at_least=2)


def sent_home(dispatch: Dispatch, local_experts: torch.Tensor) -> torch.Tensor:
    """Let expert e add e to its rows, and bring the sums home."""
    ids = dispatch.arrived[1]
    by_expert = RowsByExpert(dispatch.arrived, len(local_experts), num_copies=ids.numel())
    number = local_experts.to(ids.device).repeat_interleave(by_expert.rows_per_expert)
    y = by_expert.rows.clone()
    y[: len(number)] += number[:, None]
    return dispatch.combine(by_expert.sums(y))


def on_rank(rank_spec: RankSpec) -> None:
    device = torch.device(f"cuda:{rank_spec.rank}")
    torch.cuda.set_device(device)
    group = JoinedGroup(rank_spec, device).group
    topology = Topology.even(NUM_EXPERTS, rank_spec.num_ranks)
    generator = torch.Generator().manual_seed(rank_spec.rank)
    num_tokens = 5 * rank_spec.rank  # rank 0 is idle
    x = torch.randn(num_tokens, HIDDEN, generator=generator).to(device)
    expert_ids = torch.rand(num_tokens, NUM_EXPERTS, generator=generator).topk(TOP_K).indices
    tokens = (x, expert_ids.to(device), torch.rand(num_tokens, TOP_K).to(device))
    expected = sent_home(LocalDispatcher().dispatch(*tokens), torch.arange(NUM_EXPERTS))
    for dispatcher in (
        AllToAllDispatcher(topology.num_local_experts, group),
        AllGatherDispatcher(topology.num_local_experts, group, bucket=5 * rank_spec.num_ranks),
    ):
        x, expert_ids, weights = tokens
        slots = torch.tensor(topology.slots(rank_spec.rank), device=device)
        dispatch = dispatcher.dispatch(x, slots[expert_ids], weights)
        local_experts = torch.tensor(topology.local_experts[rank_spec.rank])
        torch.testing.assert_close(sent_home(dispatch, local_experts), expected)


def test_dispatchers_over_nccl_equal_the_local_one():
    num_ranks = 2 if torch.cuda.device_count() < 4 else 4
    store = RendezvousStore("127.0.0.1")
    rank_specs = [
        RankSpec(
            address=store.address,
            generation="test",
            rank=rank,
            num_ranks=num_ranks,
            join_timeout_s=120,
            exchange_timeout_s=60,
        )
        for rank in range(num_ranks)
    ]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=on_rank, args=(rank_spec,)) for rank_spec in rank_specs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * num_ranks
