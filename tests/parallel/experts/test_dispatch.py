"""Dispatchers over real gloo, compared with the local one and with what a token must get."""

from threading import Lock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from model.config import TextConfig
from model.network.kernels.grouped_experts import GroupedExperts
from model.network.moe import (
    Dispatch,
    Dispatcher,
    ExpertShard,
    LocalDispatcher,
    MoE,
    RowsByExpert,
)
from parallel.experts.dispatch import AllGatherDispatcher, AllToAllDispatcher
from parallel.experts.policy import WireDtype
from parallel.experts.topology import Topology
from tests.parallel.rank_threads import run_ranks
from tests.tiny import tiny_config

HIDDEN = 8

CASES = [
    pytest.param(1, [5], 64, 6, None, id="one rank"),
    pytest.param(2, [5, 5], 64, 6, None, id="even"),
    pytest.param(2, [9, 0], 64, 6, None, id="one idle rank"),
    pytest.param(2, [0, 0], 64, 6, None, id="all ranks idle"),
    pytest.param(2, [7, 4], 64, 1, 6, id="every token wants expert 6"),
    pytest.param(4, [3, 1, 0, 8], 64, 6, None, id="four uneven ranks"),
    pytest.param(4, [4, 4, 4, 4], 64, 6, 63, id="the last expert of four ranks is busy"),
    pytest.param(8, [1, 0, 17, 2, 5, 0, 3, 9], 64, 6, None, id="eight uneven ranks"),
    pytest.param(8, [6, 2, 0, 1, 5, 3, 3, 9], 384, 8, None, id="384 experts, top 8"),
]


def all_to_all(
    topology: Topology, group: dist.ProcessGroup, *, bucket: int, wire: WireDtype = "auto"
) -> "OfExperts":
    dispatcher = AllToAllDispatcher(topology.num_local_experts, group, wire)
    return OfExperts(dispatcher, topology, group)


def all_gather(
    topology: Topology, group: dist.ProcessGroup, *, bucket: int, wire: WireDtype = "auto"
) -> "OfExperts":
    dispatcher = AllGatherDispatcher(topology.num_local_experts, group, bucket, wire)
    return OfExperts(dispatcher, topology, group)


class OfExperts:
    """A dispatcher to slots, called with experts, as `LayerDispatcher` does for whole steps."""

    def __init__(self, dispatcher: Dispatcher, topology: Topology, group: dist.ProcessGroup):
        self.dispatcher = dispatcher
        self.slots = torch.tensor(topology.slots(group.rank()))

    def dispatch(self, x, expert_ids, weights) -> Dispatch:
        return self.dispatcher.dispatch(x, self.slots[expert_ids], weights)


MAKERS = [all_to_all, all_gather]


def sent_home(dispatch: Dispatch, local_experts, compute=lambda rows, expert: rows):
    """Let `compute(rows, expert)` be what experts do, and bring the sums home."""
    by_expert = RowsByExpert(dispatch.arrived, len(local_experts))
    assert int(by_expert.rows_per_expert.sum()) == len(by_expert.rows)
    expert = torch.tensor(local_experts).repeat_interleave(by_expert.rows_per_expert)
    return dispatch.combine(by_expert.sums(compute(by_expert.rows, expert[:, None])))


def routed(rank: int, num_tokens: int, num_experts: int, top_k: int, favourite: int | None):
    """Make tokens and their routing, the same for the same arguments."""
    generator = torch.Generator().manual_seed(rank)
    x = torch.randint(-8, 8, (num_tokens, HIDDEN), generator=generator).float()
    scores = torch.rand(num_tokens, num_experts, generator=generator)
    if favourite is not None:
        scores[:, favourite] = 2.0
    weights = torch.randint(1, 8, (num_tokens, top_k), generator=generator) / 8
    return x, scores.topk(top_k).indices, weights


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("num_ranks", "tokens", "num_experts", "top_k", "favourite"), CASES)
def test_each_token_gets_exactly_what_its_experts_give(
    make, num_ranks, tokens, num_experts, top_k, favourite
):
    """Expert e adds e. Small integers and eighths have no rounding, so equality is exact."""
    topology = Topology.even(num_experts, num_ranks)

    def on_rank(group: dist.ProcessGroup) -> None:
        rank = group.rank()
        x, expert_ids, weights = routed(rank, tokens[rank], num_experts, top_k, favourite)
        dispatcher = make(topology, group, bucket=max(tokens))
        dispatch = dispatcher.dispatch(x, expert_ids, weights)
        home = sent_home(dispatch, topology.local_experts[rank], torch.add)
        expected = (x[:, None] + expert_ids[..., None]) * weights[..., None]
        assert torch.equal(home, expected.sum(1))

    run_ranks(num_ranks, on_rank)


def networks(num_ranks: int, **text: object):
    """Make a MoE layer with all experts, and its shards on ranks with the same weights."""
    config: TextConfig = tiny_config(text).text
    torch.manual_seed(0)
    num_experts = config.n_routed_experts
    whole = MoE(config, ExpertShard(range(num_experts), LocalDispatcher()))
    topology = Topology.even(config.n_routed_experts, num_ranks)

    def part(rank: int, dispatcher) -> MoE:
        moe = MoE(config, ExpertShard(topology.local_experts[rank], dispatcher))
        weights = dict(whole.state_dict())
        for name in [name for name in weights if name.startswith("experts.")]:
            weights[name] = weights[name][list(topology.local_experts[rank])]
        moe.load_state_dict(weights)
        return moe

    return whole, part, topology


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("tokens", "dtype", "tolerance"),
    [
        pytest.param([7], torch.float32, 1e-5, id="one rank"),
        pytest.param([7, 0], torch.float32, 1e-5, id="two ranks, one idle"),
        pytest.param([3, 5, 0, 11], torch.float32, 1e-5, id="four ranks"),
        pytest.param([3, 5], torch.bfloat16, 2e-2, id="bfloat16"),
        pytest.param([3, 0, 11, 4], torch.bfloat16, 2e-2, id="four ranks in bfloat16"),
        pytest.param([0, 0], torch.float32, 0, id="no tokens"),
    ],
)
def test_a_layer_over_ranks_equals_the_layer_in_one_process(make, tokens, dtype, tolerance):
    whole, part, topology = networks(len(tokens))
    whole = whole.to(dtype)
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(n, whole.gate.config.hidden_size, generator=generator).to(dtype) for n in tokens
    ]

    @torch.inference_mode()
    def on_rank(group: dist.ProcessGroup) -> None:
        rank = group.rank()
        moe = part(rank, make(topology, group, bucket=max(tokens))).to(dtype)
        got = moe(inputs[rank])
        torch.testing.assert_close(got, whole(inputs[rank]), rtol=tolerance, atol=tolerance)

    run_ranks(len(tokens), on_rank)


class OneAtATime(nn.Module):
    """Triton's interpreter computes in one thread only."""

    lock = Lock()

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, *arrived: torch.Tensor) -> torch.Tensor:
        with self.lock:
            return self.experts(*arrived)


@pytest.mark.parametrize("make", MAKERS)
def test_kernels_compute_what_dispatchers_bring(make):
    tokens = [3, 0, 5]
    whole, part, topology = networks(len(tokens), n_routed_experts=12)
    inputs = [torch.randn(n, whole.gate.config.hidden_size) for n in tokens]

    @torch.inference_mode()
    def on_rank(group: dist.ProcessGroup) -> None:
        rank = group.rank()
        moe = part(rank, make(topology, group, bucket=max(tokens)))
        grouped = GroupedExperts(moe.experts)
        moe.add_module("experts", OneAtATime(grouped))
        torch.testing.assert_close(moe(inputs[rank]), whole(inputs[rank]), rtol=1e-5, atol=1e-5)
        local_experts = list(topology.local_experts[rank])
        chosen = whole.gate(torch.cat(inputs))[0].flatten().bincount(minlength=12)
        assert torch.equal(grouped.rows_computed, chosen[local_experts])

    run_ranks(len(tokens), on_rank)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("wire", "tolerance"), [("bfloat16", 2**-8), ("float8", 2**-4)])
def test_a_narrow_wire_rounds_rows_to_it(make, dtype, wire, tolerance):
    """Experts return their input; rows of very different sizes keep their precision."""
    topology = Topology.even(8, 2)

    def on_rank(group: dist.ProcessGroup) -> None:
        generator = torch.Generator().manual_seed(group.rank())
        x = torch.randn(5, HIDDEN, generator=generator)
        x *= torch.tensor([1e-6, 0.0, 1.0, 1e3, 1e6])[:, None]
        expert_ids = torch.rand(5, 8, generator=generator).topk(3).indices
        dispatcher = make(topology, group, bucket=5, wire=wire)
        dispatch = dispatcher.dispatch(x.to(dtype), expert_ids, torch.full((5, 3), 1 / 3))
        home = sent_home(dispatch, topology.local_experts[group.rank()])
        assert home.dtype == dtype
        error = (home.float() - x).abs()
        assert (error <= 1.5 * tolerance * x.abs() + 2**-9 * x.abs().amax(1, keepdim=True)).all()
        assert wire != "float8" or error.any()

    run_ranks(2, on_rank)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("wire", ["auto", "bfloat16", "float8"])
def test_numbers_that_break_in_one_token_stay_in_that_token(make, wire):
    topology = Topology.even(8, 2)

    def on_rank(group: dist.ProcessGroup) -> None:
        x, expert_ids, weights = routed(group.rank(), 4, 8, 3, None)
        x[1] = torch.nan
        dispatch = make(topology, group, bucket=6, wire=wire).dispatch(x, expert_ids, weights)
        home = sent_home(dispatch, topology.local_experts[group.rank()])
        assert home.isnan().any(1).tolist() == [False, True, False, False]

    run_ranks(2, on_rank)


@pytest.mark.parametrize("make", MAKERS)
def test_experts_may_live_on_several_ranks_in_any_order(make):
    topology = Topology(6, ((5, 0, 1, 2), (2, 3, 4, 5)))

    def on_rank(group: dist.ProcessGroup) -> None:
        rank = group.rank()
        x, expert_ids, weights = routed(rank, 5 + rank, 6, 3, None)
        dispatch = make(topology, group, bucket=6).dispatch(x, expert_ids, weights)
        home = sent_home(dispatch, topology.local_experts[rank], torch.mul)
        expected = (x[:, None] * expert_ids[..., None] * weights[..., None]).sum(1)
        assert torch.equal(home, expected)

    run_ranks(2, on_rank)


def test_a_copy_at_home_is_preferred_and_others_take_turns():
    topology = Topology(3, ((0, 1), (1, 2), (0, 2)))
    assert topology.slots(0) == [0, 1, 3]  # expert 2 lives on ranks 1 and 2
    assert topology.slots(1) == [0, 2, 3]
    assert topology.slots(2) == [4, 2, 5]
    apart = Topology(4, ((0, 1), (0, 2), (3, 1), (2, 3)))  # each copy answers one other rank
    owners = [[slot // 2 for slot in apart.slots(rank)] for rank in range(4)]
    assert [owners[rank][0] for rank in range(4)] == [0, 1, 0, 1]
    assert [owners[rank][1] for rank in range(4)] == [0, 2, 2, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: Topology.even(7, 2), "7 experts do not divide over 2", id="uneven"),
        pytest.param(lambda: Topology(2, ((0,), (0,))), r"have no place.*\[1\]", id="homeless"),
        pytest.param(lambda: Topology(2, ((0, 1), (1, 1))), "rank 1 holds .* twice", id="twice"),
        pytest.param(lambda: Topology(3, ((0, 1), (2,))), r"equally many.*\[2, 1\]", id="lopsided"),
    ],
)
def test_a_topology_that_cannot_be_says_why(make, message):
    with pytest.raises(ValueError, match=message):
        make()
