"""Attention of single queries to latent kv in a paged cache: absorbed latent attention in Triton.

`decode` does the work of `attend.attend_pieces` for queries in the absorbed form: the latent kv of
a token is its key, and the first C of its C + R numbers are its value, for all heads. It reads
block tables and lengths on the device and waits for nothing, so a CUDA graph can hold it. Each
context is split over several programs, and a second kernel joins their results by their
log-sum-exp (lse), as in flash-decoding.

Letters: B queries, H heads, C kv_lora_rank, R rotary width, S splits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.config import BLOCK_SIZE

HEADS = 16  # of one program: the fewest rows that tensor cores multiply
MAX_SPLITS = 64
JOINED = 8192  # numbers that a program of the second kernel adds up, 64 in each thread
PROGRAMS = 2 * 132  # two for each multiprocessor of an H100 or H200

# Tokens of a tile and stages of the pipeline, by bytes of a number. No GPU has run this: the choice
# comes from what Triton 3.7 compiles for sm80 to sm120 at the published widths, C = 512 and R = 64.
# The pipeline loads block numbers first, then kv; of five stages that leaves two buffers of kv, so
# 32 tokens (36,864 bytes) load while 32 others are used. With the query that is 93,696 bytes of
# shared memory: one program on a multiprocessor with 100 KiB (sm86, sm89, sm120) or 164 KiB (sm80),
# two with 228 KiB (sm90, sm100); tiles of 64 tokens would need 168,960 bytes. Four warps hold the
# [16, 512] float32 sums in at most 200 registers a thread and spill none. In float32 one buffer of
# 16 tokens fits: 74,816 bytes.
TILES = {2: (32, 5), 4: (16, 2)}
NUM_WARPS = 4


@torch.library.custom_op("moonsweep::latent_decode", mutates_args=())
def decode(
    query: Tensor,
    cache: Tensor,
    tables: Tensor,
    rows: Tensor,
    lens: Tensor,
    scale: float,
    latent_width: int,
) -> Tensor:
    """Attend from each query to the first tokens of its sequence.

    Scores, sums and the results of splits are float32. A query of length 0 gets zeros; what lies
    in the cache behind the end of a context is not read.

    Args:
        query: [B, H, C + R], absorbed; B = 0 is legal.
        cache: [slots, C + R], one layer, in the dtype of `query`.
        tables: [sequences, blocks] int32, the blocks of each sequence.
        rows: [B] int32, the row of `tables` that each query attends to. Several queries may share
            one, with lengths of their own.
        lens: [B] int32, how many tokens each query attends to.
        scale: of the scores.
        latent_width: C.

    Returns:
        [B, H, C], the weighted sums of latents.
    """
    num, heads, width = query.shape
    joined = query.new_empty(num, heads, latent_width)
    if num == 0:
        return joined
    # A launch takes more and other arguments than the function, which pyright cannot know.
    attend_split: Any = _attend_split
    join_splits: Any = _join_splits
    num_groups = ceil_div(heads, HEADS)
    splits = num_splits(num * num_groups, tables.shape[1])
    outputs = query.new_empty(num, splits, heads, latent_width, dtype=torch.float32)
    lses = query.new_empty(num, splits, heads, dtype=torch.float32)
    rope, c_tile = width - latent_width, tile_width(latent_width)
    tile, num_stages = TILES[query.element_size()]
    attend_split[(num, num_groups, splits)](
        *(query, cache, tables, rows, lens, outputs, lses, scale),
        *(query.stride(0), query.stride(1), cache.stride(0), tables.stride(0)),
        *(heads, latent_width, rope, tile, splits),
        *(HEADS, BLOCK_SIZE, c_tile, tile_width(rope)),
        num_warps=NUM_WARPS,
        num_stages=num_stages,
    )
    chunk = min(c_tile, JOINED // splits)
    join_splits[(num * heads, ceil_div(latent_width, chunk))](
        outputs, lses, lens, joined, heads, latent_width, tile, splits, chunk
    )
    return joined


@decode.register_fake
def _(
    query: Tensor,
    cache: Tensor,
    tables: Tensor,
    rows: Tensor,
    lens: Tensor,
    scale: float,
    latent_width: int,
) -> Tensor:
    return query.new_empty(*query.shape[:2], latent_width)


def num_splits(num_programs: int, num_blocks: int) -> int:
    """Choose over how many programs to split a context, a power of two.

    It depends on shapes alone, which a CUDA graph fixes, and not on the lengths of contexts.
    """
    wanted = min(MAX_SPLITS, num_blocks, ceil_div(PROGRAMS, num_programs))
    return power_of_2(wanted)


def tile_width(width: int) -> int:
    """Return how wide a tile for `width` numbers is: products want 16 or more."""
    return max(16, power_of_2(width))


def power_of_2(number: int) -> int:
    """Return the least power of two that is not below `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()


def ceil_div(number: int, divisor: int) -> int:
    """Divide and round up."""
    return -(-number // divisor)


@triton.jit
def _split_len(length, TILE: tl.constexpr, SPLITS: tl.constexpr):
    """Return how many tokens each split has: whole tiles. The last ones may have fewer, or none."""
    return tl.cdiv(tl.cdiv(length, SPLITS), TILE) * TILE


@triton.jit(do_not_specialize_on_alignment=["tables", "rows", "lens"])
def _attend_split(
    query, cache, tables, rows, lens, outputs, lses, scale,
    query_stride, head_stride, slot_stride, table_stride,
    H: tl.constexpr, C: tl.constexpr, R: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, C_TILE: tl.constexpr, R_TILE: tl.constexpr,
):  # fmt: skip
    """Attend from one query and HEADS of its heads to one split of its context."""
    b, split = tl.program_id(0), tl.program_id(2)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    c, r = tl.arange(0, C_TILE), tl.arange(0, R_TILE)
    length = tl.load(lens + b)
    first = split * _split_len(length, TILE, SPLITS)
    end = tl.minimum(first + _split_len(length, TILE, SPLITS), length)
    if first < end:
        table = tables + tl.load(rows + b) * table_stride
        heads = query + b * query_stride + h[:, None] * head_stride
        is_head = h[:, None] < H
        q_latent = tl.load(heads + c[None, :], mask=is_head & (c[None, :] < C), other=0.0)
        q_rope = tl.load(heads + C + r[None, :], mask=is_head & (r[None, :] < R), other=0.0)
        highest = tl.full((HEADS,), float("-inf"), tl.float32)
        total = tl.zeros((HEADS,), tl.float32)
        output = tl.zeros((HEADS, C_TILE), tl.float32)
        for start in range(first, end, TILE):
            place = start + tl.arange(0, TILE)
            is_context = place < end
            block = tl.load(table + place // BLOCK, mask=is_context, other=0)
            token = cache + (block * BLOCK + place % BLOCK).to(tl.int64)[:, None] * slot_stride
            # Masked with zeros: what lies behind a context may be NaN, and 0 * NaN is NaN.
            seen = is_context[:, None]
            latent = tl.load(token + c[None, :], mask=seen & (c[None, :] < C), other=0.0)
            rope = tl.load(token + C + r[None, :], mask=seen & (r[None, :] < R), other=0.0)
            # "ieee": tf32 would round float32 inputs to 10 bits.
            scores = tl.dot(q_latent, tl.trans(latent), input_precision="ieee")
            scores = tl.dot(q_rope, tl.trans(rope), scores, input_precision="ieee")
            scores = tl.where(is_context[None, :], scores * scale, float("-inf"))
            now_highest = tl.maximum(highest, tl.max(scores, 1))
            shrink = tl.exp(highest - now_highest)
            weights = tl.exp(scores - now_highest[:, None])
            total = total * shrink + tl.sum(weights, 1)
            output = output * shrink[:, None]
            output = tl.dot(weights.to(latent.dtype), latent, output, input_precision="ieee")
            highest = now_highest
        at = (b * SPLITS + split) * H + h
        tl.store(
            outputs + at[:, None] * C + c[None, :],
            output / total[:, None],
            mask=is_head & (c[None, :] < C),
        )
        tl.store(lses + at, highest + tl.log(total), mask=h < H)


@triton.jit(do_not_specialize_on_alignment=["lens"])
def _join_splits(
    outputs, lses, lens, joined,
    H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Join the splits of one head of one query, CHUNK of its latent numbers."""
    head = tl.program_id(0)  # b * H + h
    b, h = head // H, head % H
    c = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    length = tl.load(lens + b)
    split = tl.arange(0, SPLITS)
    # The other splits have written nothing.
    is_used = split * _split_len(length, TILE, SPLITS) < length
    at = (b * SPLITS + split) * H + h
    lse = tl.load(lses + at, mask=is_used, other=float("-inf"))
    highest = tl.where(length > 0, tl.max(lse, 0), 0.0)
    weights = tl.exp(lse - highest)
    weights = weights / tl.where(length > 0, tl.sum(weights, 0), 1.0)
    output = tl.load(
        outputs + at[:, None] * C + c[None, :],
        mask=is_used[:, None] & (c[None, :] < C),
        other=0.0,
    )
    found = tl.sum(output * weights[:, None], 0)
    tl.store(joined + head * C + c, found.to(joined.dtype.element_ty), mask=c < C)
