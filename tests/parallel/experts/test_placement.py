"""Experts are placed by the tokens that they computed before."""

import numpy as np
import pytest

from parallel.experts.placement import place, place_layer
from parallel.experts.topology import Topology


def level(topology: Topology, tokens) -> float:
    """Divide the mean by the largest tokens of a rank; every rank has equally many of its own."""
    busy = np.zeros(topology.num_ranks)
    for rank in range(topology.num_ranks):
        slots = np.array(topology.slots(rank))
        np.add.at(
            busy, slots // topology.num_local_experts, np.asarray(tokens) / topology.num_ranks
        )
    return busy.mean() / busy.max()


def skewed(num_experts: int, seed: int = 0):
    chance = np.random.default_rng(seed)
    return chance.permutation(1e6 / np.arange(1, num_experts + 1)).astype(int)


def test_the_busiest_experts_are_kept_apart():
    topology = place_layer([9, 8, 7, 1, 1, 2], num_ranks=3, num_copies=0)
    assert topology.local_experts == ((0, 4), (1, 3), (2, 5))


def test_the_busiest_expert_gets_the_copies():
    topology = place_layer([90, 1, 1, 1], num_ranks=2, num_copies=1)
    assert all(0 in experts for experts in topology.local_experts)
    assert level(topology, [90, 1, 1, 1]) > 0.98


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_placing_levels_the_ranks_and_copies_level_them_further(num_ranks):
    tokens = skewed(64, seed=2)
    levels = [
        level(Topology.even(64, num_ranks), tokens),
        level(place_layer(tokens.tolist(), num_ranks, num_copies=0), tokens),
        level(place_layer(tokens.tolist(), num_ranks, num_copies=4), tokens),
    ]
    assert levels[0] < 0.8
    assert levels[1] > levels[0] + 0.05
    assert levels[2] > 0.94


@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_load_every_rank_has_its_slots_full(seed):
    """`Topology` checks the rest: every expert has a slot, and no rank holds one twice."""
    chance = np.random.default_rng(seed)
    num_ranks = int(chance.choice([1, 2, 3, 4, 8]))
    num_experts = num_ranks * int(chance.integers(1, 5))
    num_copies = int(chance.integers(0, num_experts - num_experts // num_ranks + 1))
    tokens = (chance.pareto(0.3, num_experts) * chance.integers(0, 2, num_experts)).astype(int)
    topology = place_layer(tokens.tolist(), num_ranks, num_copies)
    assert topology.num_local_experts == num_experts // num_ranks + num_copies


def test_layers_are_placed_one_by_one():
    load = {3: skewed(16, 1), 7: skewed(16, 2)}
    topologies = place(load, 4, 1)
    assert topologies == {layer: place_layer(load[layer].tolist(), 4, 1) for layer in (3, 7)}


@pytest.mark.parametrize(
    ("num_ranks", "num_copies", "message"),
    [
        pytest.param(3, 0, "16 experts do not divide over 3", id="uneven"),
        pytest.param(4, 13, r"room for 0 to 12 copies on each, not 13", id="too many copies"),
        pytest.param(4, -1, r"not -1", id="less than none"),
    ],
)
def test_a_placement_that_cannot_be_says_why(num_ranks, num_copies, message):
    with pytest.raises(ValueError, match=message):
        place_layer([1] * 16, num_ranks, num_copies)
