"""Which rank holds which experts, from how much each had to do in an earlier run.

A step of a layer lasts as long as its busiest rank, and which experts are hot differs from layer to
layer, so each layer is placed for itself: a single placement for all would level only the sum over
layers, which is nearly level anyhow. Placements are fixed for a run, since the load of a dataset is
stationary enough and moving weights in a run would make its numbers depend on its history.

Letters: E routed experts, R ranks.
"""

import heapq
from collections.abc import Sequence

from parallel.experts.load import ExpertLoad
from parallel.experts.topology import Topology


def place(load: ExpertLoad, num_ranks: int, num_copies: int) -> dict[int, Topology]:
    """A topology for each layer, as `place_layer`."""
    return {
        layer: place_layer(tokens.tolist(), num_ranks, num_copies) for layer, tokens in load.items()
    }


def place_layer(tokens: Sequence[int], num_ranks: int, num_copies: int) -> Topology:
    """Level the ranks' tokens, by longest processing time first (Graham 1969).

    Args:
        tokens: [E], of each expert.
        num_ranks: R.
        num_copies: slots of each rank beyond E / R, for further copies of the busiest experts.

    Raises:
        ValueError: the experts do not divide, or no rank could hold so many.
    """
    num_experts = len(tokens)
    num_slots = Topology.even(num_experts, num_ranks).num_held + num_copies
    if not 0 <= num_copies <= num_experts - num_experts // num_ranks:
        raise ValueError(
            f"a rank cannot hold {num_slots} of {num_experts} experts; with {num_ranks} ranks "
            f"there is room for 0 to {num_experts - num_experts // num_ranks} copies on each, not "
            f"{num_copies}"
        )
    copies = _copies(tokens, num_ranks, num_ranks * num_copies)
    shares = [count / copy for count, copy in zip(tokens, copies, strict=True)]
    busiest_first = sorted(range(num_experts), key=lambda expert: -shares[expert])
    held: list[list[int]] = [[] for _ in range(num_ranks)]
    busy = [0.0] * num_ranks
    for expert in (each for each in busiest_first for _ in range(copies[each])):
        rank = _make_room(held, busy, shares, expert, num_slots)
        held[rank].append(expert)
        busy[rank] += shares[expert]
    return Topology(num_experts, tuple(tuple(sorted(experts)) for experts in held))


def _copies(tokens: Sequence[int], num_ranks: int, num_more: int) -> list[int]:
    """[E]: how many ranks hold each expert; more, time and again, for the busiest copy.

    Their number divides the ranks where slots allow it, so that copies answer equally many ranks.
    """
    copies = [1] * len(tokens)
    divisors = [number for number in range(1, num_ranks + 1) if num_ranks % number == 0]
    busiest: list[tuple[float, int]] = [(-count, expert) for expert, count in enumerate(tokens)]
    heapq.heapify(busiest)
    while num_more and busiest:
        _, expert = heapq.heappop(busiest)
        next_number = next(number for number in divisors if number > copies[expert])
        if next_number - copies[expert] > num_more:
            continue  # a less busy one may need fewer
        num_more -= next_number - copies[expert]
        copies[expert] = next_number
        if next_number < num_ranks:
            heapq.heappush(busiest, (-tokens[expert] / next_number, expert))
    for expert in sorted(range(len(tokens)), key=lambda each: -tokens[each] / copies[each]):
        more = min(num_more, num_ranks - copies[expert])
        copies[expert] += more
        num_more -= more
    return copies


def _make_room(
    held: list[list[int]],
    busy: list[float],
    shares: Sequence[float],
    expert: int,
    num_slots: int,
) -> int:
    """The least busy rank that can take the expert; where none can, another expert moves."""
    lacking = [rank for rank, experts in enumerate(held) if expert not in experts]
    free = [rank for rank in lacking if len(held[rank]) < num_slots]
    if free:
        return min(free, key=busy.__getitem__)
    # Only ranks that hold the expert have room. A full rank has something that they lack.
    (taker, *_) = (rank for rank, experts in enumerate(held) if len(experts) < num_slots)
    giver = min(lacking, key=busy.__getitem__)
    moved = min(set(held[giver]) - set(held[taker]), key=lambda each: (shares[each], each))
    held[giver].remove(moved)
    held[taker].append(moved)
    busy[giver] -= shares[moved]
    busy[taker] += shares[moved]
    return giver
