"""Which rank holds which experts, chosen from how many tokens each expert had in an earlier run.

A layer takes as long as its busiest rank, and each layer has other busy experts. So each layer gets
a placement of its own: one placement for all layers would level only the sum over the layers, which
is nearly level anyway. A placement stays fixed during a run, because the load of a dataset changes
little, and because results would depend on the history of the run if weights moved.

Letters: E routed experts, R ranks.
"""

import heapq
from collections.abc import Sequence

from parallel.experts.load import ExpertLoad
from parallel.experts.topology import Topology


def place(load: ExpertLoad, num_ranks: int, num_copies: int) -> dict[int, Topology]:
    """Choose a topology for each layer; see `place_layer`."""
    return {
        layer: place_layer(tokens.tolist(), num_ranks, num_copies) for layer, tokens in load.items()
    }


def place_layer(tokens: Sequence[int], num_ranks: int, num_copies: int) -> Topology:
    """Level the tokens of the ranks: the longest processing time comes first (Graham 1969).

    `tokens` are those of each expert [E]. Each rank has `num_copies` slots beyond E / R, for extra
    copies of the busiest experts. Raises ValueError: the experts do not divide over the ranks, or a
    rank has no room for so many copies.
    """
    num_experts = len(tokens)
    num_slots = Topology.even(num_experts, num_ranks).num_local_experts + num_copies
    if not 0 <= num_copies <= num_experts - num_experts // num_ranks:
        raise ValueError(
            f"a rank cannot hold {num_slots} of {num_experts} experts; with {num_ranks} ranks "
            f"there is room for 0 to {num_experts - num_experts // num_ranks} copies on each, not "
            f"{num_copies}"
        )
    copies = _count_copies(tokens, num_ranks, num_ranks * num_copies)
    tokens_per_copy = [count / copy for count, copy in zip(tokens, copies, strict=True)]
    busiest_first = sorted(range(num_experts), key=lambda expert: -tokens_per_copy[expert])
    placed: list[list[int]] = [[] for _ in range(num_ranks)]  # the experts of each rank so far
    busy = [0.0] * num_ranks  # their tokens
    for expert in (each for each in busiest_first for _ in range(copies[each])):
        rank = _make_room(placed, busy, tokens_per_copy, expert, num_slots)
        placed[rank].append(expert)
        busy[rank] += tokens_per_copy[expert]
    return Topology(num_experts, tuple(tuple(sorted(experts)) for experts in placed))


def _count_copies(tokens: Sequence[int], num_ranks: int, num_extra: int) -> list[int]:
    """Choose how many ranks hold each expert [E]: the busiest gets another copy, repeatedly.

    The number of copies divides the number of ranks where the slots allow it, so that each copy
    serves equally many ranks.
    """
    copies = [1] * len(tokens)
    divisors = [number for number in range(1, num_ranks + 1) if num_ranks % number == 0]
    busiest: list[tuple[float, int]] = [(-count, expert) for expert, count in enumerate(tokens)]
    heapq.heapify(busiest)
    while num_extra and busiest:
        _, expert = heapq.heappop(busiest)
        next_number = next(number for number in divisors if number > copies[expert])
        if next_number - copies[expert] > num_extra:
            continue  # A less busy expert may need fewer copies to reach its next divisor.
        num_extra -= next_number - copies[expert]
        copies[expert] = next_number
        if next_number < num_ranks:
            heapq.heappush(busiest, (-tokens[expert] / next_number, expert))
    # The slots that remain are too few for a divisor; the busiest experts get them.
    for expert in sorted(range(len(tokens)), key=lambda each: -tokens[each] / copies[each]):
        more = min(num_extra, num_ranks - copies[expert])
        copies[expert] += more
        num_extra -= more
    return copies


def _make_room(
    placed: list[list[int]],
    busy: list[float],
    tokens_per_copy: Sequence[float],
    expert: int,
    num_slots: int,
) -> int:
    """Return the least busy rank that can take the expert; move another expert if none can."""
    lacking = [rank for rank, experts in enumerate(placed) if expert not in experts]
    with_room = [rank for rank in lacking if len(placed[rank]) < num_slots]
    if with_room:
        return min(with_room, key=busy.__getitem__)
    # Only ranks that hold the expert already have room. A full rank gives one of them an expert
    # that it lacks, and takes this expert into the slot that became free.
    (taker, *_) = (rank for rank, experts in enumerate(placed) if len(experts) < num_slots)
    giver = min(lacking, key=busy.__getitem__)
    candidates = set(placed[giver]) - set(placed[taker])
    moved = min(candidates, key=lambda each: (tokens_per_copy[each], each))
    placed[giver].remove(moved)
    placed[taker].append(moved)
    busy[giver] -= tokens_per_copy[moved]
    busy[taker] += tokens_per_copy[moved]
    return giver
