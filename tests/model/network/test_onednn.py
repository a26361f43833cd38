import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.network import onednn
from model.network.batch import whole_sequences
from model.network.mlp import LinearGelu
from model.network.moe import Experts, RowExperts
from model.network.onednn import (
    WidenedExperts,
    WidenedLinear,
    has_bfloat16_products,
    is_prepackable,
    prepack,
    rounded_up,
    widened_product,
)
from tests.tiny import tiny_config, tiny_model


def prepacked(module):
    """Prepack a module; it stays itself if this processor has no bfloat16 products."""
    holder = nn.Sequential(module)
    prepack(holder)
    return holder[0]


@pytest.mark.parametrize("num_rows", [0, 1, 7, 130])
@pytest.mark.parametrize("bias", [True, False])
def test_a_prepacked_linear_map_equals_the_plain_one(num_rows, bias):
    torch.manual_seed(0)
    linear = nn.Linear(96, 200, bias=bias).bfloat16().requires_grad_(requires_grad=False)
    x = torch.randn(num_rows, 96).bfloat16()
    torch.testing.assert_close(prepacked(linear)(x), linear(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_prepacked_linear_map_ends_with_its_gelu(approximate):
    torch.manual_seed(0)
    linear = LinearGelu(96, 200, approximate=approximate).requires_grad_(requires_grad=False)
    x = torch.randn(7, 96)
    expected = F.gelu(F.linear(x, linear.weight, linear.bias), approximate=approximate)
    assert torch.equal(linear(x), expected)
    actual = prepacked(linear.bfloat16())(x.bfloat16()).float()
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param([0, 0, 0, 0], id="no rows"),
        pytest.param([0, 1, 0, 0], id="one row"),
        pytest.param([3, 0, 5, 2], id="few rows"),
        pytest.param([0, 300, 0, 0], id="one favourite"),
        pytest.param([150, 9, 131, 17], id="many rows"),
    ],
)
def test_prepacked_experts_equal_the_grouped_products(counts):
    torch.manual_seed(0)
    experts = Experts(4, 64, 32).bfloat16().requires_grad_(requires_grad=False)
    rows = torch.randn(sum(counts), 64).bfloat16()
    expected = experts.products(rows, torch.tensor(counts))
    packed = prepacked(experts)
    assert isinstance(packed, RowExperts)
    actual = packed.products(rows, torch.tensor(counts))
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)


def test_few_numbers_of_rows_reach_the_products():
    lengths = [rounded_up(count) for count in range(1, 10_001)]
    assert len(set(lengths)) < 100
    for count, length in zip(range(1, 10_001), lengths, strict=True):
        assert count <= length <= max(count + 7, count * 9 / 8)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_prepacked_model_keeps_no_plain_copy_and_gives_the_same_numbers():
    model = tiny_model(tiny_config()).bfloat16()
    batch = whole_sequences([list(range(5, 60)), [7]])
    expected = model.logits(model(batch))
    num_before = num_parameters(model)
    prepack(model)
    is_prepacked = is_prepackable(model.language_model.model.embed_tokens.weight)
    assert (num_parameters(model) < num_before / 2) == is_prepacked
    actual = model.logits(model(batch))
    # bfloat16 keeps 8 bits, and one token in a hundred may choose another expert.
    error = (actual - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.median() < 0.02
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_dtypes_stay_as_they_are(dtype):
    model = tiny_model(tiny_config()).to(dtype)
    names = [name for name, _ in model.named_parameters()]
    prepack(model)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.fixture
def old_processor(monkeypatch):
    """A processor whose bfloat16 products are emulated, as far as this package can see."""
    monkeypatch.setattr(onednn, "has_bfloat16_products", lambda: False)


@pytest.mark.parametrize(
    ("machine", "of_onednn", "of_x86", "expected"),
    [
        pytest.param("x86_64", True, True, True, id="AVX-512 with bfloat16"),
        pytest.param("x86_64", True, False, False, id="AVX-512 without"),
        pytest.param("AMD64", True, False, False, id="the same on Windows"),
        pytest.param("x86_64", False, True, False, id="oneDNN was told to use AVX2"),
        pytest.param("aarch64", True, False, True, id="Arm with bfloat16"),
        pytest.param("aarch64", False, False, False, id="Arm without"),
    ],
)
def test_a_processor_needs_instructions_for_bfloat16(
    monkeypatch, machine, of_onednn, of_x86, expected
):
    monkeypatch.setattr(onednn.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: of_x86)
    monkeypatch.setattr(
        torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: of_onednn, raising=False
    )
    assert has_bfloat16_products() == expected


@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (4,), (2, 65)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_widened_product_is_the_float32_product_rounded_once(shape, bias):
    torch.manual_seed(0)
    linear = nn.Linear(96, 600, bias=bias).bfloat16().requires_grad_(requires_grad=False)
    x = torch.randn(*shape, 96).bfloat16()
    exact = nn.Linear(96, 600, bias=bias)
    exact.load_state_dict(linear.state_dict())
    actual = widened_product(x, linear.weight, linear.bias)
    expected = exact(x.float()).bfloat16()
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=1e-6)
    assert (actual != expected).sum() <= 0.01 * expected.numel()  # sums in another order


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_widened_linear_map_ends_with_its_gelu(old_processor, approximate):
    torch.manual_seed(0)
    linear = LinearGelu(96, 300, approximate=approximate).bfloat16()
    x = torch.randn(9, 96).bfloat16()
    expected = linear(x)
    fast = prepacked(linear)
    assert isinstance(fast, WidenedLinear)
    torch.testing.assert_close(fast(x), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("counts", [[0, 0, 0, 0], [0, 1, 0, 0], [3, 0, 5, 2], [150, 9, 131, 17]])
def test_widened_experts_equal_the_grouped_products(old_processor, counts):
    torch.manual_seed(0)
    experts = Experts(4, 64, 32).bfloat16().requires_grad_(requires_grad=False)
    rows = torch.randn(sum(counts), 64).bfloat16()
    expected = experts.products(rows, torch.tensor(counts))
    fast = prepacked(experts)
    assert isinstance(fast, WidenedExperts)
    torch.testing.assert_close(
        fast.products(rows, torch.tensor(counts)), expected, rtol=0.02, atol=0.02
    )


def test_a_widened_model_keeps_its_weights_and_gives_the_same_numbers(old_processor):
    model = tiny_model(tiny_config()).bfloat16()
    batch = whole_sequences([list(range(5, 60)), [7]])
    expected = model.logits(model(batch))
    weights = dict(model.named_parameters())
    prepack(model)
    assert {name: id(each) for name, each in model.named_parameters()} == {
        name: id(each) for name, each in weights.items()
    }
    assert not any(type(module) is nn.Linear for module in model.modules())
    actual = model.logits(model(batch))
    error = (actual - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.median() < 0.02
