"""Rows between the exchange and the experts: serialised, grouped by expert, summed again.

Nothing here talks to another rank. Sums have a fixed order, because results must not depend on
which row came first: no atomics.

| wire dtype | a row on its way to experts | a sum on its way back (all-to-all) |
|---|---|---|
| `auto` | in its own dtype | in its own dtype |
| `bfloat16` | rounded to bfloat16 | rounded to bfloat16 |
| `float8` | e4m3 with a float32 scale that maps its largest number to 448 | rounded to bfloat16 |

A *local id* is the number of an expert among those of one rank, and negative where the expert is on
another rank.

Letters: n, b rows, D hidden size, K experts per token, M rows that reach the local experts.
"""

import torch
from torch import Tensor

from model.network.moe import add_rows
from parallel.experts.policy import WireDtype

_NUMBER_BYTES = 4  # of a scale, of a weight, and of a local id
_FLOAT8 = torch.float8_e4m3fn
_MIN_SCALE = 1e-30  # of a row of zeros, which must not divide by zero


def serialize_rows(
    x: Tensor, local_ids: Tensor, weights: Tensor, wire_dtype: WireDtype = "auto"
) -> Tensor:
    """Put rows and their routing into one buffer, so that one collective carries all of it.

    `x` [n, D], `local_ids` [n, K] and `weights` [n, K] become [n, bytes] uint8: activations, scale
    (float8 only), float32 weights, int32 local ids.
    """
    numbers = [weights.float(), local_ids.int()]
    if wire_dtype == "float8":
        assert x.shape[1] % _NUMBER_BYTES == 0, "the numbers behind a row must be aligned"
        greatest = x.abs().amax(dim=1, keepdim=True).float()
        scale = (greatest / torch.finfo(_FLOAT8).max).clamp(min=_MIN_SCALE)
        x = (x / scale).to(_FLOAT8)
        numbers.insert(0, scale)
    elif wire_dtype == "bfloat16":
        x = x.bfloat16()
    return torch.cat([part.contiguous().view(torch.uint8) for part in (x, *numbers)], dim=1)


def deserialize_rows(
    buffer: Tensor, like: Tensor, top_k: int, wire_dtype: WireDtype = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Undo `serialize_rows`: rows [n, D], local ids [n, K] int32, weights [n, K] float32.

    Rows get the dtype of `like`; those that have it already are views, not copies.
    """
    width = top_k * _NUMBER_BYTES
    row = buffer[:, : buffer.shape[1] - 2 * width]
    weights = buffer[:, row.shape[1] : row.shape[1] + width].view(torch.float32)
    local_ids = buffer[:, row.shape[1] + width :].view(torch.int32)
    if wire_dtype == "float8":
        scale = row[:, -_NUMBER_BYTES:].view(torch.float32)
        x = (row[:, :-_NUMBER_BYTES].view(_FLOAT8).float() * scale).type_as(like)
    else:
        x = row.view(torch.bfloat16 if wire_dtype == "bfloat16" else like.dtype).type_as(like)
    return x, local_ids, weights


class RowsByExpert:
    """Rows that came to this rank, copied once for each of their local experts.

    Rows arrive by rank, then by token. Experts want them by expert. An example with four rows,
    K = 2 and the local experts 0 and 1:

        row          a        b        c        d
        local ids    [0, 1]   [1, -]   [0, -]   [1, 0]     (-: an expert of another rank)

        by rank, then by token:    a0 a1  b1  c0  d1 d0    (the copies, as they stand in local ids)
        -> by expert, then by row: a0 c0 d0 | a1 b1 d1     (`rows`, M = 6)

    After the experts the way goes back, and the copies of a row are added up in the order of their
    local ids: a = w * a0 + w * a1, b = w * b1, and so on.

    `x` is [n, D], `local_ids` [n, K], `weights` [n, K] float32. `num_copies` is M, how many local
    ids are not negative. If it is larger, the last rows belong to no expert; they are undefined.
    """

    def __init__(
        self, x: Tensor, local_ids: Tensor, weights: Tensor, num_local_experts: int, num_copies: int
    ) -> None:
        copies = local_ids.flatten().long()  # [n*K], by row
        is_here = copies >= 0
        # The copies of no expert get the number behind the last expert, so they come last.
        order = torch.where(is_here, copies, num_local_experts).argsort(stable=True)[:num_copies]
        self.rows = x.index_select(0, order // local_ids.shape[1])  # [M, D], by expert, then by row
        # By expert -> by row; the copies of no expert stay last.
        key = torch.where(is_here[order], order, len(copies))
        self._by_row = key.argsort(stable=True)  # [M]
        self._weights = weights.flatten()[order[self._by_row]]  # [M]
        self._counts = is_here.view(local_ids.shape).sum(1)  # [n]

    def partial_sums(self, y: Tensor) -> Tensor:
        """Sum, for each row, the weighted outputs of its local experts: [M, D] -> [n, D]."""
        return add_rows(y, self._by_row, self._counts, self._weights)


def count_copies(ids: Tensor, num_ids: int) -> Tensor:
    """Count how often each of 0 to `num_ids` - 1 occurs in `ids` [n, K]: [num_ids] int64.

    Negative ids are skipped. The result stays on the device: nobody waits for it, unlike for
    `bincount`.
    """
    copies = ids.flatten().long()
    copies = torch.where(copies < 0, num_ids, copies)
    counts = torch.zeros(num_ids + 1, dtype=torch.int64, device=ids.device)
    return counts.scatter_add_(0, copies, torch.ones_like(copies))[:num_ids]
