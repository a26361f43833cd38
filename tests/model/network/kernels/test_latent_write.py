"""The kernel beside its twin; in Triton's interpreter where there is no GPU."""

import pytest
import torch

from jobs.bench.measure.fake_gpu import fake_gpu
from model.network import attention
from model.network.kernels.latent_write import latent_write, rotate_and_write
from model.network.norm import RMSNorm
from model.network.rope import text_rotation

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The twin rounds each product of a rotation, the kernel rounds once.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def by_both(num, *, heads=4, nope=32, latent=48, rope=16, dtype=torch.float32):
    """What the kernel and its twin return, each with the cache that it wrote to."""
    generator = torch.Generator().manual_seed(num)
    query = torch.randn(num, heads * (nope + rope), generator=generator).to(DEVICE, dtype)
    kv = torch.randn(num, latent + rope, generator=generator).to(DEVICE, dtype)
    norm = RMSNorm(latent, eps=1e-6).to(DEVICE, dtype)
    norm.weight.data = torch.randn(latent, generator=generator).to(DEVICE, dtype)
    slots = torch.randperm(40, generator=generator)[:num].to(DEVICE)
    positions = torch.arange(num, device=DEVICE) * 7
    rotation = text_rotation(positions, rope, 1e4, dtype)
    results = []
    with torch.no_grad():
        for form in (rotate_and_write, attention.rotate_and_write):
            cache = torch.full((40, latent + rope), torch.nan, device=DEVICE, dtype=dtype)
            heads_of_query = query.unflatten(-1, (heads, -1))
            results.append((*form(heads_of_query, kv, norm, rotation, slots, cache), cache))
    return results


def assert_alike(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        tolerance = TOLERANCE[theirs.dtype]
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num", [0, 1, 13], ids="{} tokens".format)
def test_the_kernel_equals_its_twin_and_writes_no_other_slot(num, dtype):
    found, expected = by_both(num, dtype=dtype)
    assert_alike(found, expected)
    assert found[-1].isfinite().all(1).sum() == num


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"heads": 3, "nope": 20, "latent": 12, "rope": 6}, id="no powers of two"),
        pytest.param({"heads": 16, "nope": 128, "latent": 512, "rope": 64}, id="published"),
    ],
)
def test_all_widths(shape):
    assert_alike(*by_both(2, **shape))


def test_the_norm_rounds_where_its_twin_rounds():
    (_, found, _), (_, expected, _) = by_both(9, latent=64, dtype=torch.float16)
    # The order of the sum may change a last bit; another place of rounding changes a quarter.
    assert (found[:, :64] != expected[:, :64]).float().mean() < 0.02


def test_without_a_cache_it_is_the_twin():
    query, kv = torch.randn(3, 2, 24), torch.randn(3, 40)
    norm = RMSNorm(32, eps=1e-6)
    rotation = text_rotation(torch.arange(3), 8, 1e4, torch.float32)
    found = rotate_and_write(query, kv, norm, rotation, None, None)
    expected = attention.rotate_and_write(query, kv, norm, rotation, None, None)
    assert all(map(torch.equal, found, expected))


def test_shapes_and_dtypes_under_fake_tensors():
    with torch.no_grad(), fake_gpu():
        query = torch.empty(5, 16, 192, dtype=torch.bfloat16, device="cuda")
        kv = torch.empty(5, 576, dtype=torch.bfloat16, device="cuda")
        angles = torch.empty(5, 32, dtype=torch.bfloat16, device="cuda")
        slots = torch.empty(5, dtype=torch.int64, device="cuda")
        weight = torch.empty(512, dtype=torch.bfloat16, device="cuda")
        cache = torch.empty(160, 576, dtype=torch.bfloat16, device="cuda")
        turned, latent_kv = latent_write(query, kv, weight, angles, angles, slots, cache, 1e-6)
    for found, given in ((turned, query), (latent_kv, kv)):
        assert (found.shape, found.dtype, found.device) == (given.shape, given.dtype, given.device)
