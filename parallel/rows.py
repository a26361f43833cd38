"""Rows between the wire and the experts: packed, grouped by expert, added up again.

Nothing here talks to another rank, and sums have a fixed order: no atomics.

Letters: n, b rows, D hidden size, K experts per token, M rows that reach the held experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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
        self.rows = x[order // places.shape[1]]  # [M, D], by expert, then by row
        where = torch.full_like(copies, num_copies)  # M: nowhere
        where[order] = torch.arange(num_copies, device=x.device)
        self._where = torch.where(is_here, where, num_copies).view(places.shape)
        self._weights = torch.where(is_here.view(places.shape), weights, 0.0)

    def partial_sums(self, y: Tensor) -> Tensor:
        """Outputs [M, D] -> [n, D] float32: the weighted outputs of a row's experts here."""
        return add_rows(y, self._where, self._weights)


def rows_per_place(places: Tensor, num_held: int) -> Tensor:
    """[n, K] -> [held experts] int64: how many copies each has; no wait for the device."""
    copies = places.flatten().long()
    copies = torch.where(copies < 0, num_held, copies)
    counts = torch.zeros(num_held + 1, dtype=torch.int64, device=places.device)
    return counts.scatter_add_(0, copies, torch.ones_like(copies))[:num_held]


def add_rows(y: Tensor, where: Tensor, weights: Tensor | None = None) -> Tensor:
    """Add rows of `y` [n, D] from left to right: [b, D] float32.

    Args:
        y: the rows.
        where: [b, k] which rows to add; n adds nothing.
        weights: [b, k] float32, or None for ones.
    """
    padded = y.new_empty(len(y) + 1, y.shape[1], dtype=torch.float32)
    padded[:-1] = y
    padded[-1] = 0  # for "nothing"
    if weights is None:
        return F.embedding_bag(where, padded, mode="sum")
    return F.embedding_bag(where, padded, mode="sum", per_sample_weights=weights.contiguous())
