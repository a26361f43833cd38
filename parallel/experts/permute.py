"""Rows between the wire and the experts: packed, grouped by expert, added up again.

Nothing here talks to another rank, and sums have a fixed order: no atomics.

| wire dtype | a row on its way to experts | a sum on its way back (all-to-all) |
|---|---|---|
| `auto` | as it is | as it is |
| `bfloat16` | rounded | rounded |
| `float8` | e4m3, and a float32 scale that makes its greatest number 448 | as bfloat16 |

Letters: n, b rows, D hidden size, K experts per token, M rows that reach the held experts.
"""

import torch
from torch import Tensor

from model.network.moe import add_rows
from parallel.experts.policy import WireDtype

_NUMBER_BYTES = 4  # of a scale, of a weight, and of an expert's place
_FLOAT8 = torch.float8_e4m3fn
_LEAST_SCALE = 1e-30  # of a row of zeros


def pack(x: Tensor, places: Tensor, weights: Tensor, wire: WireDtype = "auto") -> Tensor:
    """[n, D], [n, K], [n, K] float32 -> [n, bytes] uint8: everything that travels with a row."""
    numbers = [weights.float(), places.int()]
    if wire == "float8":
        assert x.shape[1] % _NUMBER_BYTES == 0, "the numbers behind a row must be aligned"
        greatest = x.abs().amax(dim=1, keepdim=True).float()
        scale = (greatest / torch.finfo(_FLOAT8).max).clamp(min=_LEAST_SCALE)
        x = (x / scale).to(_FLOAT8)
        numbers.insert(0, scale)
    elif wire == "bfloat16":
        x = x.bfloat16()
    return torch.cat([part.contiguous().view(torch.uint8) for part in (x, *numbers)], dim=1)


def unpack(
    packed: Tensor, like: Tensor, top_k: int, wire: WireDtype = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Undo `pack`, without a copy where rows are as `like`: rows, places int32, weights."""
    of_numbers = top_k * _NUMBER_BYTES
    row = packed[:, : packed.shape[1] - 2 * of_numbers]
    weights = packed[:, row.shape[1] : row.shape[1] + of_numbers].view(torch.float32)
    places = packed[:, row.shape[1] + of_numbers :].view(torch.int32)
    if wire == "float8":
        scale = row[:, -_NUMBER_BYTES:].view(torch.float32)
        x = (row[:, :-_NUMBER_BYTES].view(_FLOAT8).float() * scale).type_as(like)
    else:
        x = row.view(torch.bfloat16 if wire == "bfloat16" else like.dtype).type_as(like)
    return x, places, weights


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
