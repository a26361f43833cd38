"""Rows between the wire and the experts: packed, grouped by expert, added up again.

Nothing here talks to another rank, and sums have a fixed order: no atomics.

Letters: n, b rows, D hidden size, K experts per token, M rows that reach the held experts.
"""

import torch
from torch import Tensor

from model.moe import add_rows

_NUMBER_BYTES = 4  # of a weight, and of an expert's place


def pack(x: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """[n, D], [n, K], [n, K] float32 -> [n, bytes] uint8: everything that travels with a row."""
    parts = (x.contiguous(), weights.float().contiguous(), places.int().contiguous())
    return torch.cat([part.view(torch.uint8) for part in parts], dim=1)


def unpack(packed: Tensor, like: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Undo `pack` without a copy: rows as `like`, places int32, weights."""
    end = like.shape[1] * like.element_size()
    middle = end + top_k * _NUMBER_BYTES
    x, weights, places = packed[:, :end], packed[:, end:middle], packed[:, middle:]
    return x.view(like.dtype), places.view(torch.int32), weights.view(torch.float32)


class HeldRows:
    """Rows that came to this rank, one copy for each of their experts here, by expert.

    Args:
        x: [n, D].
        places: [n, K], which held expert, negative for none.
        weights: [n, K] float32.
        num_held: experts of this rank.
        num_copies: how many places are not negative, M; may be more, then the last rows are of no
            expert and mean nothing.
    """

    def __init__(
        self, x: Tensor, places: Tensor, weights: Tensor, num_held: int, num_copies: int
    ) -> None:
        copies = places.flatten().long()  # [n*K], by row
        is_here = copies >= 0
        order = torch.where(is_here, copies, num_held).argsort(stable=True)[:num_copies]
        self.rows = x.index_select(0, order // places.shape[1])  # [M, D], by expert, then by row
        # By expert -> by row, those of no expert last.
        key = torch.where(is_here[order], order, len(copies))
        self._by_row = key.argsort(stable=True)  # [M]
        self._weights = weights.flatten()[order[self._by_row]]  # [M]
        self._counts = is_here.view(places.shape).sum(1)  # [n]

    def partial_sums(self, y: Tensor) -> Tensor:
        """Outputs [M, D] -> [n, D]: the weighted outputs of a row's experts here."""
        return add_rows(y, self._by_row, self._counts, self._weights)


def rows_per_place(places: Tensor, num_held: int) -> Tensor:
    """[n, K] -> [held experts] int64: how many copies each has; no wait for the device."""
    copies = places.flatten().long()
    copies = torch.where(copies < 0, num_held, copies)
    counts = torch.zeros(num_held + 1, dtype=torch.int64, device=places.device)
    return counts.scatter_add_(0, copies, torch.ones_like(copies))[:num_held]
