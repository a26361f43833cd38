"""`Topology`: which rank of a group holds which routed experts.

All ranks of a group use the same topology. A *slot* is the place of one expert's weights. If each
rank has S slots, then rank r owns the slots `r * S` to `(r + 1) * S - 1`, in the order in which its
weights are stacked. Usually each expert has one slot; a busy expert may have several, on different
ranks.

This module does not import torch, because drivers and supervisors carry topologies too.

Letters: E routed experts, R ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from model.config import TextConfig


@dataclass(frozen=True)
class Topology:
    """The experts of every rank.

    Raises ValueError: the ranks hold different numbers of experts, a rank holds an expert twice, or
    an expert has no slot.
    """

    num_experts: int
    local_experts: tuple[tuple[int, ...], ...]  # for each rank, the experts in its slots

    def __post_init__(self) -> None:
        if len({len(experts) for experts in self.local_experts}) != 1:
            sizes = [len(experts) for experts in self.local_experts]
            raise ValueError(f"ranks must hold equally many experts, got {sizes}")
        for rank, experts in enumerate(self.local_experts):
            if len(set(experts)) != len(experts):
                raise ValueError(f"rank {rank} holds an expert twice: {list(experts)}")
        placed = {expert for experts in self.local_experts for expert in experts}
        if placed != set(range(self.num_experts)):
            wrong = sorted(placed ^ set(range(self.num_experts)))
            raise ValueError(f"these experts have no place or do not exist: {wrong}")

    @classmethod
    def even(cls, num_experts: int, num_ranks: int) -> Self:
        """Give rank r the experts `r * E / R` to `(r + 1) * E / R - 1`; R must divide E."""
        if num_experts % num_ranks:
            raise ValueError(
                f"{num_experts} experts do not divide over {num_ranks} ranks; choose a number of "
                f"ranks that divides {num_experts}"
            )
        width = num_experts // num_ranks
        blocks = [range(rank * width, (rank + 1) * width) for rank in range(num_ranks)]
        return cls(num_experts, tuple(map(tuple, blocks)))

    @property
    def num_ranks(self) -> int:
        """The number of ranks, R."""
        return len(self.local_experts)

    @property
    def num_local_experts(self) -> int:
        """The number of experts, and so of slots, of each rank."""
        return len(self.local_experts[0])

    def slots(self, rank: int) -> list[int]:
        """Return, for each of the E experts, the slot that computes it for the tokens of `rank`.

        A rank uses its own copy of an expert where it has one. The other ranks take turns among
        the copies, so that each copy serves equally many ranks where their number divides R.
        """
        return [self._slot(expert, rank) for expert in range(self.num_experts)]

    def _slot(self, expert: int, rank: int) -> int:
        owners = [owner for owner, experts in enumerate(self.local_experts) if expert in experts]
        others = [each for each in range(self.num_ranks) if each not in owners]
        # The turns start at another copy for each expert. Otherwise the first copies would serve
        # all ranks that remain where the numbers do not divide.
        turn = 0 if rank in owners else (others.index(rank) + expert) % len(owners)
        owner = rank if rank in owners else owners[turn]
        return owner * self.num_local_experts + self.local_experts[owner].index(expert)


# Of each layer with routed experts. Layers may place their experts differently, but every rank has
# equally many slots in every layer, so that one dispatcher to slots serves all layers.
Topologies = Mapping[int, Topology]


def even_topologies(text: TextConfig, num_ranks: int) -> Topologies:
    """Divide the experts of every layer equally, in their order, as `Topology.even`."""
    even = Topology.even(text.n_routed_experts, num_ranks)
    return dict.fromkeys(filter(text.is_moe_layer, range(text.num_hidden_layers)), even)
