import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.bench.measure.fake_gpu import fake_gpu
from model.config import BLOCK_SIZE
from model.network import attend as attend_module
from model.network.attend import (
    attend,
    attend_past,
    attend_pieces,
    attend_plainly,
    attend_varlen,
)
from model.network.kv_pieces import PIECE_LEN, pieces_of, slots_of
from model.network.varlen import Spans

SCALE = 0.3


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_hand(query, key, value, mask):
    """Attend in the simplest way: queries [n, H, width], keys [L, H, width], seen keys [n, L]."""
    scores = torch.einsum("nhw,lhw->hnl", query, key) * SCALE
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hnl,lhw->nhw", weights, value)


def one_head(kv):
    return kv[..., None, :], kv[..., None, :]


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_fused_kernel_equals_plain_products(dtype, is_causal):
    query, key, value = (random(2, 3, 20, 8, dtype=dtype, seed=seed) for seed in range(3))
    mask = None
    if not is_causal:
        mask = torch.zeros(2, 1, 1, 20, dtype=dtype)
        mask[1, ..., 13:] = -torch.inf
    fused = attend(query, key, value, SCALE, is_causal=is_causal, mask=mask)
    plain = attend_plainly(query, key, value, SCALE, is_causal=is_causal, mask=mask)
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(fused.output, plain.output, rtol=0, atol=tolerance)
    torch.testing.assert_close(fused.lse, plain.lse, rtol=0, atol=tolerance, check_dtype=True)


@pytest.mark.parametrize("std", [5.0, 50.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_plain_products_do_not_round_scores_to_16_bits(dtype, std):
    query, key, value = (random(4, 2, 64, 96, seed=seed) for seed in range(3))
    q, k, v = (query * std / (SCALE * 96**0.5)).to(dtype), key.to(dtype), value.to(dtype)
    exact = attend_plainly(q.double(), k.double(), v.double(), SCALE).output

    def error(found):
        return ((found.output.double() - exact).norm() / exact.norm()).item()

    assert error(attend_plainly(q, k, v, SCALE)) < 1.5 * error(attend(q, k, v, SCALE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_scores_on_a_gpu_are_float32(dtype):
    with fake_gpu():
        query = torch.empty(2, 3, 5, 8, dtype=dtype, device="cuda")
        key = torch.empty(2, 7, 3, 8, dtype=dtype, device="cuda").transpose(1, 2)
        with Made() as made:
            found = attend_plainly(query, key, key, SCALE)
    assert made.dtypes[2, 3, 5, 7] == [torch.float32, dtype][: 1 + (dtype != torch.float32)]
    assert found.output.shape == (2, 3, 5, 8)
    assert found.output.dtype == dtype
    assert found.lse.dtype == torch.float32


@pytest.mark.parametrize("most", [1, 125, 6 * 20 * 7, 1 << 25], ids=str)
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("rows_of_mask", [None, 1, 20], ids=["no mask", "one", "each"])
def test_plain_products_cut_into_pieces_equal_the_whole(monkeypatch, most, is_causal, rows_of_mask):
    query, key, value = (random(2, 3, 20, 8, seed=seed) for seed in range(3))
    mask = None if rows_of_mask is None else random(2, 1, rows_of_mask, 20, seed=3)
    whole = attend_plainly(query, key, value, SCALE, is_causal=is_causal, mask=mask)
    monkeypatch.setattr(attend_module, "MAX_SCORES", most)
    found = attend_plainly(query, key, value, SCALE, is_causal=is_causal, mask=mask)
    torch.testing.assert_close(found.output, whole.output)
    torch.testing.assert_close(found.lse, whole.lse)


class Made(TorchDispatchMode):
    """Records the dtypes of the tensors that are made in its `with`, by shape, each dtype once."""

    def __init__(self):
        super().__init__()
        self.dtypes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            dtypes = self.dtypes.setdefault(tuple(made.shape), [])
            dtypes.extend({made.dtype}.difference(dtypes))
        return made


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that is made in its `with`."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.num_elements = max(self.num_elements, made.numel())
        return made


def test_a_chunk_and_a_tile_of_its_past_make_a_bounded_number_of_scores_at_once():
    chunk, tile = (torch.empty(1, 16, n, 192, device="meta") for n in (8000, 8192))
    with Largest() as largest:
        found = attend_plainly(chunk, tile, tile, SCALE)
    assert found.output.shape == (1, 16, 8000, 192)
    assert found.lse.shape == (1, 16, 8000)
    assert largest.num_elements == 1 << 25


def test_two_parts_of_a_context_merge_to_the_whole():
    query, key, value = (random(1, 3, n, 8, seed=n) for n in (5, 30, 30))
    first = attend(query, key[:, :, :11], value[:, :, :11], SCALE)
    rest = attend(query, key[:, :, 11:], value[:, :, 11:], SCALE)
    whole = attend(query, key, value, SCALE)
    torch.testing.assert_close(first.merge_partial(rest).output, whole.output)
    torch.testing.assert_close(rest.merge_partial(first).lse, whole.lse)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("lens", [[7], [4, 4, 9, 1, 1], []], ids=["one", "runs", "none"])
def test_sequences_side_by_side_see_themselves_alone(lens, is_causal):
    query, key, value = (random(sum(lens), 2, 8, seed=seed) for seed in range(3))
    found = attend_varlen(
        query, key, value, Spans(tuple(lens), query.device), SCALE, is_causal=is_causal
    )
    sequence = torch.arange(len(lens)).repeat_interleave(torch.tensor(lens, dtype=torch.int64))
    mask = sequence[:, None] == sequence
    expected = by_hand(query, key, value, mask.tril() if is_causal else mask)
    torch.testing.assert_close(found.output, expected)
    assert found.lse.shape == (sum(lens), 2)


def scattered(lens, width):
    """Make a cache of nan, except for contexts of `lens` in scattered blocks, and their tables."""
    counts = [-(-length // BLOCK_SIZE) for length in lens]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(1)) + 1
    cache = torch.full(((sum(counts) + 1) * BLOCK_SIZE, width), torch.nan, dtype=torch.float64)
    cache[0] = 0
    tables = torch.zeros(len(lens), max(counts), dtype=torch.int64)
    contexts = []
    for number, (blocks, length) in enumerate(zip(order.split(counts), lens, strict=True)):
        tables[number, : len(blocks)] = blocks
        contexts.append(random(length, width, seed=length))
        cache[slots_of(tables[number], length)] = contexts[-1]
    return cache, tables, contexts


@pytest.mark.parametrize(
    "lens",
    [
        pytest.param([1, 40], id="short"),
        pytest.param([5, PIECE_LEN, 3 * PIECE_LEN + 1, 17], id="very different"),
        pytest.param([40 * PIECE_LEN + 3, 2], id="more than one tile"),
    ],
)
def test_pieces_of_contexts_equal_each_whole_context(lens):
    cache, tables, contexts = scattered(lens, width=6)
    query = random(len(lens), 4, 1, 6)
    found = attend_pieces(query, cache, pieces_of(tables, lens), one_head, SCALE)
    for q, context, output in zip(query, contexts, found, strict=True):
        expected = by_hand(q, context[:, None], context[:, None], torch.ones(4, len(context)) > 0)
        torch.testing.assert_close(output, expected)


def test_no_piece_is_longer_than_needed_for_its_own_sequence():
    tables = torch.ones(3, 100, dtype=torch.int64)
    pieces = pieces_of(tables, [1600, 1, PIECE_LEN])
    assert pieces.owners.tolist() == [0] * 7 + [1, 2]
    assert pieces.places.tolist() == [*range(7), 0, 0]
    assert pieces.is_context.sum(1).tolist() == [256] * 6 + [64, 1, 256]


def test_a_past_is_read_tile_by_tile():
    length = 20_000
    cache, tables, (context,) = scattered([length], width=6)
    query = random(3, 1, 6)
    found = attend_past(query, cache, slots_of(tables[0], length), one_head, SCALE)
    expected = by_hand(query, context[:, None], context[:, None], torch.ones(3, length) > 0)
    torch.testing.assert_close(found.output, expected)


def test_attention_learns():
    query, key, value = (random(6, 2, 8, seed=seed).requires_grad_() for seed in range(3))
    inputs = (query, key, value)
    found = attend_varlen(
        query, key, value, Spans((2, 4), query.device), SCALE, is_causal=True
    ).output
    mask = torch.block_diag(torch.ones(2, 2), torch.ones(4, 4)).bool().tril()
    expected = by_hand(*inputs, mask)
    for mine, theirs in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
