"""The kernel beside its twin, `attend_pieces`; in Triton's interpreter where there is no GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

from jobs.bench.measure.fake_gpu import fake_gpu
from model.config import BLOCK_SIZE
from model.network.attend import attend_pieces
from model.network.attention import as_one_head
from model.network.kernels import latent_decode
from model.network.kernels.latent_decode import MAX_SPLITS, decode, num_splits
from model.network.kv_pieces import pieces_of, slots_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SCALE = 0.3
# Rounding of the inputs is the same on both sides; the weights of the kernel are float16 too.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter computes one program after another: a context gets up to 8, and not 64."""
    monkeypatch.setattr(latent_decode, "PROGRAMS", 8)


class Case:
    """Sequences in scattered blocks of a cache that is NaN wherever no context is."""

    def __init__(self, lens, *, heads=4, latent=32, rope=16, dtype=torch.float32):
        generator = torch.Generator().manual_seed(sum(lens) + heads)
        self.lens, self.latent = lens, latent
        counts = [-(-length // BLOCK_SIZE) for length in lens]
        order = torch.randperm(sum(counts), generator=generator) + 1
        num_slots = (sum(counts) + 1) * BLOCK_SIZE
        self.cache = torch.full((num_slots, latent + rope), torch.nan, dtype=dtype)
        self.tables = torch.zeros(len(lens), max(counts, default=1), dtype=torch.int64)
        for table, blocks, length in zip(self.tables, order.split(counts), lens, strict=True):
            table[: len(blocks)] = blocks
            context = torch.randn(length, latent + rope, generator=generator)
            self.cache[slots_of(table, length)] = context.to(dtype)
        self.query = torch.randn(len(lens), heads, latent + rope, generator=generator).to(dtype)

    def by_kernel(self, rows=None, lens=None):
        rows = list(range(len(self.lens))) if rows is None else rows
        indices = (rows, self.lens if lens is None else lens)
        rows, lens = (torch.tensor(each, dtype=torch.int32, device=DEVICE) for each in indices)
        there = (self.query.to(DEVICE), self.cache.to(DEVICE), self.tables.int().to(DEVICE))
        found = decode(*there, rows, lens, SCALE, self.latent)
        assert found.dtype == self.query.dtype
        return found.cpu()

    def by_twin(self, rows=None, lens=None):
        """Attend in float64; every length is at least 1."""
        tables = self.tables if rows is None else self.tables[rows]
        pieces = pieces_of(tables, self.lens if lens is None else lens)
        cache = self.cache.double()
        cache[0] = 0  # the twin multiplies this by zero
        query = self.query.double()[:, :, None]
        found = attend_pieces(query, cache, pieces, as_one_head, SCALE)
        return found[:, :, 0, : self.latent].to(self.query.dtype)


def assert_close(found, expected):
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "lens",
    [
        pytest.param([1], id="one token"),
        pytest.param([BLOCK_SIZE, 4 * BLOCK_SIZE], id="full blocks"),
        pytest.param([3, 100, 1, 47, 33], id="ragged"),
        pytest.param([700, 2], id="long beside short"),
    ],
)
def test_the_kernel_equals_its_twin(lens, dtype):
    case = Case(lens, dtype=dtype)
    assert_close(case.by_kernel(), case.by_twin())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("heads", "latent", "rope"),
    [
        pytest.param(8, 64, 16, id="fewer heads than a tile has"),
        pytest.param(32, 32, 16, id="two tiles of heads"),
        pytest.param(20, 16, 16, id="heads do not fill their tiles"),
        pytest.param(4, 48, 16, id="the demo's widths"),
        pytest.param(2, 8, 4, id="narrower than a product"),
        pytest.param(16, 512, 64, id="the published widths"),
    ],
)
def test_all_shapes_of_heads(heads, latent, rope, dtype):
    case = Case([35, 70], heads=heads, latent=latent, rope=rope, dtype=dtype)
    assert_close(case.by_kernel(), case.by_twin())


@pytest.mark.parametrize("splits", [1, 2, 8, 64])
def test_any_number_of_splits_gives_the_same(monkeypatch, splits):
    monkeypatch.setattr(latent_decode, "num_splits", lambda *_: splits)
    case = Case([5, 300])  # 64 splits are more than the first has tokens
    assert_close(case.by_kernel(), case.by_twin())


def test_queries_without_tokens_get_zeros():
    case = Case([40, 1, 7])
    found = case.by_kernel(lens=[40, 0, 0])
    assert not found[1:].any()
    assert_close(found[:1], case.by_twin()[:1])
    assert not case.by_kernel(lens=[0, 0, 0]).any()


def test_no_queries_are_legal():
    case = Case([])
    assert case.by_kernel().shape == (0, 4, 32)


def test_queries_of_one_sequence_attend_to_lengths_of_their_own():
    case = Case([90, 50, 30])
    rows, lens = [1, 1, 0], [17, 50, 64]
    assert_close(case.by_kernel(rows, lens), case.by_twin(rows, lens))


def test_a_nan_in_a_context_reaches_its_own_query_alone():
    case = Case([60, 60])
    case.cache[case.tables[1, 1] * BLOCK_SIZE + 3, 0] = torch.nan
    found = case.by_kernel()
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


@pytest.mark.parametrize("std", [5.0, 50.0])
def test_scores_are_not_rounded_to_the_dtype_of_the_inputs(std):
    """In float16 scores of this size have steps of 1/256 to 1/16."""
    case = Case([300], latent=64, dtype=torch.float16)
    case.query *= std / (SCALE * 80**0.5)
    found, expected = case.by_kernel().double(), case.by_twin().double()
    error = (found - expected).norm() / expected.norm()
    assert error < 1e-3


def test_splits_follow_from_shapes_and_fill_a_large_gpu(monkeypatch):
    monkeypatch.setattr(latent_decode, "PROGRAMS", 264)
    assert num_splits(1, 4096) == MAX_SPLITS
    assert num_splits(1, 3) == 4  # no more splits than blocks
    assert [num_splits(number, 128) for number in (8, 32, 64, 256, 300)] == [64, 16, 8, 2, 1]


def test_the_kernel_is_one_operation_without_a_wait_under_fake_tensors():
    with fake_gpu():
        query = torch.empty(7, 16, 576, dtype=torch.bfloat16, device="cuda")
        cache = torch.empty(160, 576, dtype=torch.bfloat16, device="cuda")
        tables = torch.empty(7, 4, dtype=torch.int32, device="cuda")
        each = torch.empty(7, dtype=torch.int32, device="cuda")
        found = decode(query, cache, tables, each, each, SCALE, 512)
    assert found.shape == (7, 16, 512)
    assert found.dtype == torch.bfloat16
    assert found.device.type == "cuda"


@pytest.mark.gpu
def test_in_bfloat16_on_a_gpu():
    """The interpreter cannot multiply bfloat16."""
    case = Case([300, 2], latent=512, rope=64, dtype=torch.bfloat16)
    torch.testing.assert_close(case.by_kernel(), case.by_twin(), rtol=0.02, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120], ids="sm{}".format)
def test_the_kernels_compile_for_each_gpu_without_spilling_and_fit_its_memory(capability, tmp_path):
    """This needs no GPU. A block of sm86, sm89 or sm120 has 99 KiB of shared memory."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = (sys.executable, "-m", "tests.model.network.kernels.compile_ahead", str(capability))
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    for kernel in json.loads(found.stdout).values():
        assert kernel["spilled"] == 0
        assert kernel["shared"] <= 99 * 1024
