"""Routed experts in Triton: grouped products with SwiGLU in between, and weighted sums.

`GroupedExperts` does the work of `moe.Experts`, its twin. Copies of rows are sorted by expert in
two torch operations; three kernels do the rest. They find the copies of each expert on the device
and wait for nothing, and how many programs run depends on shapes alone: a CUDA graph can hold all
of it. They run on NVIDIA GPUs from compute capability 8.0 (sm80) on, in bfloat16, float16 and
float32. No GPU has run them yet; tests run them in Triton's interpreter and compile them.

Each kernel multiplies *blocks* of rows of one expert by *tiles* of its weight. Programs that follow
each other share the tile and differ in the block, so a tile that several blocks of its expert need
comes from memory once and then from the L2 cache.

Letters: n rows that are here, K experts per token, D hidden size, E local experts, F expert width.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from model.network.moe import Experts

_SUM_WIDTH = 512  # numbers of a row that one program adds up


class GroupedExperts(nn.Module):
    """Takes the place of `Experts` and holds the same tensors, without a copy."""

    rows_computed: Tensor  # as in `RowExperts`
    _borders: Tensor

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.gate_up_proj = experts.gate_up_proj
        self.down_proj = experts.down_proj
        self.register_buffer("rows_computed", experts.rows_computed, persistent=False)
        borders = torch.arange(len(self.down_proj) + 1, device=self.down_proj.device)
        self.register_buffer("_borders", borders, persistent=False)

    def forward(self, x: Tensor, local_ids: Tensor, weights: Tensor) -> Tensor:
        """Do the work of `RowExperts.forward`, without waiting for the device."""
        # The copies of no expert have negative ids, so they stand before those of expert 0.
        ids, order = local_ids.flatten().sort(stable=True)
        starts = torch.searchsorted(ids, self._borders.to(ids.dtype), out_int32=True)
        self.rows_computed.add_(starts.diff())
        return grouped_experts(
            x, local_ids, weights, order, starts, self.gate_up_proj, self.down_proj
        )


@torch.library.custom_op("moonsweep::grouped_experts", mutates_args=())
def grouped_experts(
    x: Tensor,
    local_ids: Tensor,
    weights: Tensor,
    order: Tensor,
    starts: Tensor,
    gate_up: Tensor,
    down: Tensor,
) -> Tensor:
    """Sum, for each row, the weighted outputs of its local experts: [n, D].

    Products and sums are float32. What is rounded to the dtype of `x`, once each: the activations
    between both products, the output of each copy, and the sum.

    Args:
        x: [n, D], in the dtype of the weights; n = 0 is legal.
        local_ids: [n, K] int64 or int32, negative where no local expert is meant.
        weights: [n, K] float32; those of negative ids are not used.
        order: [n * K] int64, copies of rows sorted by local id, where copy i * K + k of row i is
            for its expert k.
        starts: [E + 1] int32, where the copies of each expert begin in `order`, and n * K.
        gate_up: [E, 2F, D], contiguous.
        down: [E, D, F], contiguous.
    """
    sums = x.new_empty(x.shape)
    num_rows, hidden_size = x.shape
    if num_rows:
        # Rows that came in one buffer with ids and weights have gaps, so loads would be narrow.
        outputs = _outputs(x.contiguous(), order, starts, gate_up, down, local_ids.shape[1])
        shape = dict[str, Any](K=local_ids.shape[1], D=hidden_size, COLUMNS=_SUM_WIDTH)
        _add[num_rows, triton.cdiv(hidden_size, _SUM_WIDTH)](
            *(outputs, local_ids, weights, sums),
            *(local_ids.stride(0), local_ids.stride(1), weights.stride(0), weights.stride(1)),
            **shape,
        )
    return sums


def _outputs(
    x: Tensor, order: Tensor, starts: Tensor, gate_up: Tensor, down: Tensor, top_k: int
) -> Tensor:
    """Compute the output of each copy: [n * K, D] by row; those of negative ids are undefined."""
    assert gate_up.is_contiguous()
    assert down.is_contiguous()
    num_experts, hidden_size, width = down.shape
    activations = x.new_empty(len(order), width)  # sorted by expert
    outputs = x.new_empty(len(order), hidden_size)
    tiles = choose_tiles(len(order) / num_experts, x.element_size())
    num_blocks = most_blocks(len(order), num_experts, tiles.rows)
    shape = dict[str, Any](D=hidden_size, F=width, E=num_experts, ROWS=tiles.rows)
    shape.update(E_PADDED=triton.next_power_of_2(num_experts), INNER=tiles.inner)
    shape.update(num_warps=tiles.num_warps, num_stages=tiles.num_stages)
    of_gate_up = dict(shape, K=top_k, COLUMNS=tiles.columns)
    of_down = dict(shape, COLUMNS=2 * tiles.columns)  # one weight in place of two
    _gate_up[num_blocks, triton.cdiv(width, of_gate_up["COLUMNS"])](
        x, order, starts, gate_up, activations, **of_gate_up
    )
    _down[num_blocks, triton.cdiv(hidden_size, of_down["COLUMNS"])](
        activations, order, starts, down, outputs, **of_down
    )
    return outputs


@grouped_experts.register_fake
def _(x, local_ids, weights, order, starts, gate_up, down):
    return x.new_empty(x.shape)


class Tiles(NamedTuple):
    """How much a program of the products computes, and with what."""

    rows: int  # of one expert
    columns: int  # of gate, and as many of up
    inner: int  # numbers of each row and column that are multiplied at a time
    num_warps: int
    num_stages: int


def choose_tiles(rows_per_expert: float, element_size: int) -> Tiles:
    """Choose by the average number of rows of an expert, which the host knows.

    A stage of the pipeline has `rows + 2 * columns` times `inner` numbers in shared memory, which
    are 18, 24 and 32 KiB. Compiled, that makes at most 96 KiB in all. A thread block of sm86, sm89
    and sm120 may have 99 KiB, of sm80 163, of sm90 and sm100 227.

    With few rows the time is that of reading weights. 16 rows are the fewest that tensor cores
    multiply, and an expert with more reads its weights again, from L2. Beyond 8 rows on average
    many would, so blocks have 64 rows: the products with unused ones still take less time than
    reading. Prompts need larger blocks because there the products are what takes time.
    """
    inner = 128 // element_size
    if rows_per_expert <= 8:
        return Tiles(16, 64, inner, num_warps=4, num_stages=4)
    if rows_per_expert <= 96:
        return Tiles(64, 64, inner, num_warps=4, num_stages=3)
    return Tiles(128, 64, inner, num_warps=8, num_stages=3)


def most_blocks(num_copies: int, num_experts: int, rows: int) -> int:
    """Return how many blocks all experts can have together, whatever the routing.

    Each expert that has copies has a block, and another for every `rows` more of them.
    """
    num_busy = min(num_copies, num_experts)
    return num_busy + (num_copies - num_busy) // rows


@triton.jit
def _rows_of_block(
    starts, block, E: tl.constexpr, E_PADDED: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Find a block: its expert, its sorted copies [ROWS], which are copies, and whether it is one.

    The blocks of expert 0 are followed by those of expert 1, and so on. Every program scans all
    starts, which costs less than a kernel that writes a table of blocks.
    """
    e = tl.arange(0, E_PADDED)
    first = tl.load(starts + e, mask=e < E, other=0)
    end = tl.load(starts + e + 1, mask=e < E, other=0)
    num_blocks = (end - first + ROWS - 1) // ROWS
    last_block = tl.cumsum(num_blocks, 0)
    is_it = (last_block - num_blocks <= block) & (block < last_block)  # of one expert, or none
    number = block - tl.sum(tl.where(is_it, last_block - num_blocks, 0), 0)
    copy = tl.sum(tl.where(is_it, first, 0), 0) + number * ROWS + tl.arange(0, ROWS)
    expert = tl.sum(tl.where(is_it, e, 0), 0).to(tl.int64)
    is_copy = copy < tl.sum(tl.where(is_it, end, 0), 0)
    return expert, copy.to(tl.int64), is_copy, block < tl.max(last_block, 0)


@triton.jit
def _rows_tile(rows, is_row, inner, WIDTH: tl.constexpr, INNER: tl.constexpr):
    """Load numbers `inner` of rows: [rows, INNER]; `rows` point to where each begins."""
    mask = is_row[:, None]
    if WIDTH % INNER != 0:
        mask = mask & (inner < WIDTH)[None, :]
    return tl.load(rows[:, None] + inner[None, :], mask=mask, other=0.0)


@triton.jit
def _weight_tile(
    weight, column, inner,
    OUT: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Load numbers `inner` of some outputs of a weight [OUT, WIDTH]: [INNER, COLUMNS].

    Everything that depends on how weights are stored is here.
    """
    tile = weight + column[None, :] * WIDTH + inner[:, None]
    if (OUT % COLUMNS == 0) & (WIDTH % INNER == 0):
        return tl.load(tile)
    return tl.load(tile, mask=(column < OUT)[None, :] & (inner < WIDTH)[:, None], other=0.0)


@triton.jit
def _gate_up(
    x, order, starts, weight, activations,
    K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, E_PADDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Compute silu(gate) * up for one block and COLUMNS of F (SwiGLU, arXiv 2002.05202)."""
    block = tl.program_id(0)
    found = _rows_of_block(starts, block, E, E_PADDED, ROWS)
    expert, copy, is_copy, is_block = found
    if is_block:
        rows = x + tl.load(order + copy, mask=is_copy, other=0) // K * D
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        gate_weight = weight + expert * (2 * F * D)
        up_weight = gate_weight + F * D
        gate = tl.zeros((ROWS, COLUMNS), tl.float32)
        up = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, D, INNER):
            inner = start + tl.arange(0, INNER)
            tile = _rows_tile(rows, is_copy, inner, D, INNER)
            # "ieee": tf32 would round float32 inputs to 10 bits.
            gate_tile = _weight_tile(gate_weight, column, inner, F, D, COLUMNS, INNER)
            gate = tl.dot(tile, gate_tile, gate, input_precision="ieee")
            up_tile = _weight_tile(up_weight, column, inner, F, D, COLUMNS, INNER)
            up = tl.dot(tile, up_tile, up, input_precision="ieee")
        activation = (gate * tl.sigmoid(gate) * up).to(activations.dtype.element_ty)
        place = activations + copy[:, None] * F + column[None, :]
        tl.store(place, activation, mask=is_copy[:, None] & (column < F)[None, :])


@triton.jit
def _down(
    activations, order, starts, weight, outputs,
    D: tl.constexpr, F: tl.constexpr, E: tl.constexpr, E_PADDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Compute the outputs of one block, COLUMNS of D, and put them where their copies stand."""
    block = tl.program_id(0)
    found = _rows_of_block(starts, block, E, E_PADDED, ROWS)
    expert, copy, is_copy, is_block = found
    if is_block:
        rows = activations + copy * F
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        expert_weight = weight + expert * (D * F)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, F, INNER):
            inner = start + tl.arange(0, INNER)
            tile = _rows_tile(rows, is_copy, inner, F, INNER)
            weight_tile = _weight_tile(expert_weight, column, inner, D, F, COLUMNS, INNER)
            total = tl.dot(tile, weight_tile, total, input_precision="ieee")
        by_row = tl.load(order + copy, mask=is_copy, other=0)
        place = outputs + by_row[:, None] * D + column[None, :]
        total = total.to(outputs.dtype.element_ty)
        tl.store(place, total, mask=is_copy[:, None] & (column < D)[None, :])


@triton.jit
def _add(
    outputs, local_ids, weights, sums, id_row, id_column, weight_row, weight_column,
    K: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add up the weighted outputs of one row, COLUMNS of D, in the order of its local ids."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for k in tl.static_range(K):
        is_here = tl.load(local_ids + row * id_row + k * id_column) >= 0
        # Not read where no expert is meant: NaN times zero would be NaN.
        weight = tl.load(weights + row * weight_row + k * weight_column, mask=is_here, other=0.0)
        output = outputs + (row * K + k) * D + column
        total += weight * tl.load(output, mask=is_here & (column < D), other=0.0).to(tl.float32)
    tl.store(sums + row * D + column, total.to(sums.dtype.element_ty), mask=column < D)
