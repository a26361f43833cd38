"""Rows as bytes: with all that their experts must know, so that one collective carries them.

Nothing here talks to another rank.

| wire dtype | a row on its way to experts | a sum on its way back (all-to-all) |
|---|---|---|
| `auto` | in its own dtype | in its own dtype |
| `bfloat16` | rounded to bfloat16 | rounded to bfloat16 |
| `float8` | e4m3 with a float32 scale that maps its largest number to 448 | rounded to bfloat16 |

Letters: n rows, D hidden size, K experts per token.
"""

import torch
from torch import Tensor

from model.network.moe import RoutedRows
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
) -> RoutedRows:
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
