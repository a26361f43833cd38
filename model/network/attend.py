"""Softmax attention to a part of a context, and how the parts are merged.

Attention to a long context is computed part by part. Each part comes with the logarithm of the sum
of its exponentials (lse), which gives its weight when the parts are merged (arXiv 2205.14135,
section 3.1). So no mask of queries x context is ever built, and memory does not grow with the
context.

This file chooses the kernels: `attend` uses torch's fused kernel on CPUs and plain products
elsewhere, `attend_varlen` uses `varlen` on GPUs.

Letters: B sequences, H heads, T tokens, N pieces, n queries, L keys.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network import varlen
from model.network.kv_pieces import PIECE_LEN, Pieces
from model.network.varlen import Spans

TILE_LEN = 8192  # tokens of context that are read at once
MAX_SCORES = 1 << 25  # of plain products at a time; three float32 copies of them are 384 MiB

# Cached kv [..., L, kv width] -> keys and values [..., L, heads, width], equally wide.
Heads = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class PartialAttention:
    """Attention of queries to a part of their context."""

    output: Tensor  # [..., n, width]
    lse: Tensor  # [..., n], log of the sum of exp(scores); float32, or float64 for float64 inputs

    def merge_partial(self, other: "PartialAttention") -> "PartialAttention":
        """Merge with the attention to another part of the same context."""
        lse = torch.logaddexp(self.lse, other.lse)
        mine, others = (self.lse - lse).exp()[..., None], (other.lse - lse).exp()[..., None]
        return PartialAttention(self.output * mine + other.output * others, lse)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    is_causal: bool = False,
    mask: Tensor | None = None,
) -> PartialAttention:
    """Attend from queries [B, H, n, width] to keys and values [B, H, L, width].

    With `is_causal`, query i sees the keys up to i; then n = L. `mask` is added to the scores, in
    their dtype; it broadcasts to [B, H, n, L].
    """
    if query.device.type != "cpu":
        return attend_plainly(query, key, value, scale, is_causal=is_causal, mask=mask)
    # `scaled_dot_product_attention` calls this on CPUs, but drops the lse. Internal to torch.
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale
    )
    return PartialAttention(output, lse)


def attend_plainly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    is_causal: bool = False,
    mask: Tensor | None = None,
) -> PartialAttention:
    """Do the work of `attend` by plain products, a bounded number of scores at a time."""
    num_rows = max(1, MAX_SCORES // max(1, key.shape[:-1].numel()))
    if mask is not None:
        mask = mask.expand(*query.shape[:-1], key.shape[-2])
    outputs: list[Tensor] = []
    lses: list[Tensor] = []
    for number, rows in enumerate(query.split(num_rows, dim=-2)):
        first = number * num_rows
        scores = _products(rows, key) * scale  # [B, H, rows, L]
        if mask is not None:
            scores = scores + mask[..., first : first + num_rows, :]
        if is_causal:
            ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device)
            scores = scores.masked_fill(ahead.triu(first + 1), -torch.inf)
        lses.append(scores.logsumexp(-1))
        outputs.append((scores - lses[-1][..., None]).exp().type_as(value) @ value)
    return PartialAttention(torch.cat(outputs, dim=-2), torch.cat(lses, dim=-1))


def _products(query: Tensor, key: Tensor) -> Tensor:
    """Multiply [B, H, n, width] by [B, H, L, width]: [B, H, n, L], in float32 for 16-bit inputs.

    Scores of bfloat16 would make the error of the output 2.5 % at a standard deviation of 50, where
    that of the fused kernels is 0.1 %.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    if query.device.type != "cuda" or query.dtype == wide:
        return query.to(wide) @ key.to(wide).mT
    # torch has products of 16-bit matrices with float32 results on CUDA only.
    found = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).mT, out_dtype=wide)
    return found.unflatten(0, query.shape[:2])


def attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scale: float, is_causal: bool
) -> PartialAttention:
    """Attend within each of many sequences of different lengths, without padding and mask.

    Queries, keys and values are [T, H, width], one sequence after another, as `spans` say.
    Returns output [T, H, width], lse [T, H].
    """
    if varlen.runs_on(query):
        output, lse = varlen.attend(query, key, value, spans, scale, is_causal=is_causal)
        return PartialAttention(output, lse)
    if not spans.lens:
        return PartialAttention(query, query.new_empty(query.shape[:2], dtype=torch.float32))
    outputs: list[Tensor] = []
    lses: list[Tensor] = []
    runs = [(len(list(run)), length) for length, run in groupby(spans.lens)]
    totals = [count * length for count, length in runs]
    parts = (x.split(totals) for x in (query, key, value))
    for (count, length), *run in zip(runs, *parts, strict=True):
        # Neighbours of equal length are one call: [count, H, length, width].
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in run)
        found = attend(q, k, v, scale, is_causal=is_causal)
        outputs.append(found.output.transpose(1, 2).flatten(0, 1))
        lses.append(found.lse.transpose(1, 2).flatten(0, 1))
    return PartialAttention(joined(outputs), joined(lses))


def joined(parts: list[Tensor]) -> Tensor:
    """Concatenate along the first dimension; a part alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def attend_past(
    query: Tensor, cache: Tensor, slots: Tensor, heads: Heads, scale: float
) -> PartialAttention:
    """Attend from the queries of one sequence to its whole cached past, tile by tile.

    `query` is [n, H, width], `cache` one layer [slots, kv width], `slots` the past [L], L >= 1.
    Returns output [n, H, width], lse [n, H].
    """
    rows = query.transpose(0, 1)[None]  # [1, H, n, width]
    total = None
    for tile in slots.split(TILE_LEN):
        key, value = heads(cache.index_select(0, tile))
        found = attend(rows, key.transpose(0, 1)[None], value.transpose(0, 1)[None], scale)
        total = found if total is None else total.merge_partial(found)
    assert total is not None
    return PartialAttention(total.output[0].transpose(0, 1), total.lse[0].T)


def attend_pieces(
    query: Tensor, cache: Tensor, pieces: Pieces, heads: Heads, scale: float
) -> Tensor:
    """Attend from a few queries of each sequence to its whole cached context: [B, n, H, width].

    Contexts are cut into pieces of equal length, as in flash-decoding: all pieces of all sequences
    are computed side by side, then merged by sequence. So no context is padded to the longest, and
    one long context keeps all cores busy. `cache` is one layer [slots, kv width].
    """
    rows = query.transpose(1, 2)  # [B, H, n, width]
    found = list(_piece_by_piece(rows, cache, pieces, heads, scale))
    output = torch.cat([each.output for each in found])  # [N, H, n, width]
    if pieces.most > 1:
        lse = torch.cat([each.lse for each in found])  # [N, H, n]
        output = merge_by_owner(output, lse, pieces, len(query)).type_as(query)
    return output.transpose(1, 2)


def merge_by_owner(output: Tensor, lse: Tensor, pieces: Pieces, num_owners: int) -> Tensor:
    """Merge the pieces of each sequence: [N, ..., width] -> [B, ..., width].

    The weights are those of `PartialAttention.merge_partial`. `embedding_bag` adds the pieces of a
    sequence in their order; `index_add_` on a GPU would add them in any order.
    """
    by_place = lse.new_full((num_owners, pieces.most, *lse.shape[1:]), -torch.inf)
    by_place = by_place.index_put((pieces.owners, pieces.places), lse)
    weights = (lse - by_place.logsumexp(1)[pieces.owners]).exp()
    weighted = (output * weights[..., None]).flatten(1)
    device = output.device
    firsts = torch.searchsorted(pieces.owners, torch.arange(num_owners, device=device))
    merged = F.embedding_bag(
        torch.arange(len(weighted), device=device), weighted, firsts, mode="sum"
    )
    return merged.unflatten(1, output.shape[1:])


def _piece_by_piece(
    query: Tensor, cache: Tensor, pieces: Pieces, heads: Heads, scale: float
) -> Iterator[PartialAttention]:
    """Attend to each piece from the queries of its sequence, a bounded number at a time."""
    at_once = TILE_LEN // PIECE_LEN
    mask = torch.where(pieces.is_context, 0.0, -torch.inf).to(query.dtype)[:, None, None]
    for owners, slots, bias in zip(
        pieces.owners.split(at_once), pieces.slots.split(at_once), mask.split(at_once), strict=True
    ):
        kv = cache.index_select(0, slots.flatten()).unflatten(0, slots.shape)
        key, value = (x.transpose(1, 2) for x in heads(kv))
        yield attend(query.index_select(0, owners), key, value, scale, mask=bias)
