"""`Topology`: which rank of a group holds which routed experts.

Every rank has the same one. A *slot* is a place for an expert's weights: rank r has the slots
`r * num_held` to `(r + 1) * num_held`, in the order in which its weights are stacked. Usually each
expert has one slot; busy ones may have several, on different ranks.

Letters: E routed experts, R ranks.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Topology:
    """The experts of every rank.

    Raises:
        ValueError: ranks hold unequal numbers of experts, one twice, or an expert has no place.
    """

    num_experts: int
    held: tuple[tuple[int, ...], ...]  # by rank: the experts in its slots

    def __post_init__(self) -> None:
        if len({len(experts) for experts in self.held}) != 1:
            sizes = [len(experts) for experts in self.held]
            raise ValueError(f"ranks must hold equally many experts, got {sizes}")
        for rank, experts in enumerate(self.held):
            if len(set(experts)) != len(experts):
                raise ValueError(f"rank {rank} holds an expert twice: {list(experts)}")
        placed = {expert for experts in self.held for expert in experts}
        if placed != set(range(self.num_experts)):
            wrong = sorted(placed ^ set(range(self.num_experts)))
            raise ValueError(f"experts without a place, or unknown: {wrong}")

    @classmethod
    def even(cls, num_experts: int, num_ranks: int) -> Self:
        """Rank r holds the experts from `r * E / R` to `(r + 1) * E / R`.

        Raises:
            ValueError: the experts do not divide.
        """
        if num_experts % num_ranks:
            raise ValueError(
                f"{num_experts} experts do not divide over {num_ranks} ranks; choose a number of "
                f"ranks that divides {num_experts}"
            )
        share = num_experts // num_ranks
        parts = [range(rank * share, (rank + 1) * share) for rank in range(num_ranks)]
        return cls(num_experts, tuple(map(tuple, parts)))

    @property
    def num_ranks(self) -> int:
        """R."""
        return len(self.held)

    @property
    def num_held(self) -> int:
        """Slots of each rank."""
        return len(self.held[0])

    def slots(self, rank: int) -> "Tensor":
        """[E] int64: the slot that answers the tokens of `rank`, for each expert.

        A copy on the rank itself if there is one; else the other ranks take turns among the
        copies, so that each copy answers equally many where their number divides the ranks.
        """
        import torch  # only ranks need it; drivers and supervisors carry topologies

        return torch.tensor([self._slot(expert, rank) for expert in range(self.num_experts)])

    def _slot(self, expert: int, rank: int) -> int:
        copies = [owner for owner, experts in enumerate(self.held) if expert in experts]
        others = [each for each in range(self.num_ranks) if each not in copies]
        # Turns begin elsewhere for each expert, lest the first copies answer all that is left over.
        turn = 0 if rank in copies else (others.index(rank) + expert) % len(copies)
        owner = rank if rank in copies else copies[turn]
        return owner * self.num_held + self.held[owner].index(expert)
