"""The kernels beside their twin, `Experts`; in Triton's interpreter where there is no GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.bench.measure.fake_gpu import fake_gpu
from model.network.kernels.grouped_experts import GroupedExperts, choose_tiles, most_blocks
from model.network.moe import Experts, MoE, unsharded
from tests.tiny import tiny_config

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter's products of bfloat16 are garbage.
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
# Against float64. In 16 bits the activations, the outputs of experts and the sum are rounded.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def new_tensors_are_nan():
    """Fill what `torch.empty` returns with NaN, so that reading what nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def made(num_experts, hidden_size, width, dtype):
    torch.manual_seed(0)
    experts = Experts(num_experts, hidden_size, width).to(dtype).requires_grad_(False)
    return experts.to(DEVICE)


def routed(num_rows, top_k, num_experts, hidden_size, dtype, *, absent=0.0):
    """Random rows with distinct experts; a part `absent` of them is on another rank."""
    local_ids = torch.rand(num_rows, num_experts).topk(top_k).indices
    local_ids[torch.rand(num_rows, top_k) < absent] = -1
    x = torch.randn(num_rows, hidden_size).to(dtype)
    return x.to(DEVICE), local_ids.to(DEVICE), torch.rand(num_rows, top_k, device=DEVICE)


def one_by_one(experts, x, local_ids, weights):
    """Compute in the simplest way: every row visits its experts by itself, in float64."""
    gate_up, down = experts.gate_up_proj.cpu().double(), experts.down_proj.cpu().double()
    x, local_ids, weights = x.cpu().double(), local_ids.cpu(), weights.cpu().double()
    y = torch.zeros_like(x)
    for row in range(len(x)):
        for expert, weight in zip(local_ids[row].tolist(), weights[row], strict=True):
            if expert >= 0:
                gate, up = F.linear(x[row], gate_up[expert]).chunk(2)
                y[row] += weight * F.linear(F.silu(gate) * up, down[expert])
    return y


def assert_equal_to_twin(experts, x, local_ids, weights):
    grouped = GroupedExperts(experts)
    found = grouped(x, local_ids, weights)
    assert found.dtype == x.dtype
    counts = local_ids[local_ids >= 0].bincount(minlength=len(experts.down_proj))
    assert torch.equal(grouped.rows_computed, counts)
    tolerance = TOLERANCE[x.dtype]
    expected = one_by_one(experts, x, local_ids, weights)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=tolerance, atol=tolerance)
    by_twin = experts(x, local_ids, weights)
    torch.testing.assert_close(found, by_twin, rtol=2 * tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_rows", "top_k", "num_experts", "absent"),
    [
        pytest.param(0, 3, 8, 0.0, id="no rows"),
        pytest.param(1, 3, 8, 0.0, id="one token"),
        pytest.param(6, 2, 4, 0.0, id="few rows"),
        pytest.param(5, 3, 8, 0.5, id="half of the experts elsewhere"),
        pytest.param(4, 3, 8, 1.0, id="all experts elsewhere"),
        pytest.param(7, 1, 1, 0.3, id="one local expert"),
        pytest.param(35, 2, 3, 0.2, id="blocks of 64 rows"),
        pytest.param(300, 1, 2, 0.1, id="blocks of 128 rows"),
    ],
)
def test_grouped_experts_equal_their_twin(num_rows, top_k, num_experts, absent, dtype):
    experts = made(num_experts, 40, 24, dtype)  # no multiples of a tile
    rows = routed(num_rows, top_k, num_experts, 40, dtype, absent=absent)
    assert_equal_to_twin(experts, *rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("hidden_size", "width"), [(128, 64), (136, 72), (16, 200)])
def test_weights_may_have_whole_tiles_or_not(hidden_size, width, dtype):
    rows = routed(4, 2, 3, hidden_size, dtype)
    assert_equal_to_twin(made(3, hidden_size, width, dtype), *rows)


@pytest.mark.parametrize("favourite", [0, 2, 4], ids=["first", "middle", "last"])
def test_all_rows_may_want_one_expert(favourite):
    experts = made(5, 40, 24, torch.float32)
    x, local_ids, weights = routed(37, 1, 5, 40, torch.float32)
    assert choose_tiles(37 / 5, 4).rows == 16  # so this expert has three blocks
    assert_equal_to_twin(experts, x, torch.full_like(local_ids, favourite), weights)


def test_rows_ids_and_weights_may_lie_in_one_buffer():
    """As `deserialize_rows` returns them: with gaps, ids in int32."""
    experts = made(4, 40, 24, torch.float16)
    x, local_ids, weights = routed(6, 2, 4, 40, torch.float16, absent=0.3)
    parts = [x.view(torch.uint8), weights.view(torch.uint8), local_ids.int().view(torch.uint8)]
    x, weights, ids = torch.cat(parts, dim=1).split([80, 8, 8], dim=1)
    rows = (x.view(torch.float16), ids.view(torch.int32), weights.view(torch.float32))
    assert not any(each.is_contiguous() for each in rows)
    assert_equal_to_twin(experts, *rows)


def test_what_breaks_in_a_row_or_belongs_to_no_expert_stays_there():
    experts = made(4, 40, 24, torch.float32)
    x, local_ids, weights = routed(6, 2, 4, 40, torch.float32)
    expected = GroupedExperts(experts)(x, local_ids, weights)
    x[3] = torch.nan
    padded_ids = torch.cat((local_ids, torch.full_like(local_ids, -7)), dim=1)
    padded_weights = torch.cat((weights, torch.full_like(weights, torch.nan)), dim=1)
    found = GroupedExperts(experts)(x, padded_ids, padded_weights)
    assert found[3].isnan().all()
    others = [0, 1, 2, 4, 5]
    assert torch.equal(found[others], expected[others])


def test_the_parts_of_two_ranks_add_up_to_the_whole():
    experts = made(6, 40, 24, torch.float32)
    x, expert_ids, weights = routed(9, 3, 6, 40, torch.float32)
    whole, parts = GroupedExperts(experts)(x, expert_ids, weights), torch.zeros_like(x)
    for first in (0, 3):
        held = made(6, 40, 24, torch.float32)
        held.gate_up_proj = nn.Parameter(experts.gate_up_proj[first : first + 3])
        held.down_proj = nn.Parameter(experts.down_proj[first : first + 3])
        held.rows_computed = held.rows_computed[:3]
        local_ids = expert_ids - first
        local_ids = local_ids.where((local_ids >= 0) & (local_ids < 3), -1)
        parts += GroupedExperts(held.requires_grad_(False))(x, local_ids, weights)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_grouped_experts_hold_the_tensors_of_their_twin():
    experts = made(3, 16, 16, torch.float32)
    grouped = GroupedExperts(experts)
    assert [*grouped.state_dict()] == [*experts.state_dict()]
    for name, parameter in grouped.named_parameters():
        assert parameter is experts.get_parameter(name)
    assert grouped.rows_computed is experts.rows_computed


@pytest.mark.parametrize("rows", [16, 64, 128])
@pytest.mark.parametrize("num_experts", [1, 2, 7, 64])
@pytest.mark.parametrize("num_copies", [1, 5, 16, 17, 100, 1000])
def test_there_are_programs_for_every_routing_and_none_is_too_many(num_copies, num_experts, rows):
    most = most_blocks(num_copies, num_experts, rows)
    num_busy = min(num_copies, num_experts)
    lopsided = torch.tensor([1] * (num_busy - 1) + [num_copies - num_busy + 1])
    assert (-(-lopsided // rows)).sum() == most
    for _ in range(20):
        counts = torch.randint(num_experts, (num_copies,)).bincount()
        assert (-(-counts // rows)).sum() <= most


class Operations(TorchDispatchMode):
    """Notes the names of operations that compute something."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if func.namespace != "prim" and not func.is_view and "empty" not in name:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def on_fake_gpu(moe):
    for module in moe.modules():
        for name, each in list(module.named_parameters(recurse=False)):
            there = torch.empty(each.shape, dtype=torch.bfloat16, device="cuda")
            module.register_parameter(name, nn.Parameter(there, requires_grad=False))
        for name, each in list(module.named_buffers(recurse=False)):
            there = torch.empty(each.shape, dtype=each.dtype, device="cuda")
            module.register_buffer(name, there, persistent=False)
    bias = moe.gate.e_score_correction_bias
    moe.gate.e_score_correction_bias = nn.Parameter(bias.float(), requires_grad=False)
    return moe


def operations_of_a_block(num_tokens):
    config = tiny_config().text
    with torch.no_grad(), fake_gpu():
        moe = on_fake_gpu(MoE(config, unsharded(config.n_routed_experts)(0)))
        moe.add_module("experts", GroupedExperts(moe.experts))
        x = torch.zeros(num_tokens, config.hidden_size, dtype=torch.bfloat16, device="cuda")
        with Operations() as operations:
            y = x + moe(x)
    assert (y.shape, y.dtype, y.device.type) == (x.shape, x.dtype, "cuda")
    return operations.names


def test_a_block_needs_few_operations_however_many_tokens_it_has():
    names = operations_of_a_block(1)
    assert names.count("grouped_experts") == 1
    assert len(names) <= 26, names
    assert operations_of_a_block(256) == names


@pytest.mark.parametrize(
    "capability",
    [80, *(pytest.param(each, marks=pytest.mark.slow) for each in (86, 89, 90, 100, 120))],
)
def test_the_kernels_compile_for_each_gpu_without_spilling_and_fit_its_memory(capability, tmp_path):
    """This needs no GPU. A block of sm86, sm89 or sm120 has 99 KiB of shared memory."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    program = "tests.model.network.kernels.compile_grouped_experts"
    command = (sys.executable, "-m", program, str(capability))
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kernels = json.loads(found.stdout)
    assert len(kernels) == 7  # both products for three numbers of rows, and the sum
    for kernel in kernels.values():
        assert kernel["spilled"] == 0
        assert kernel["shared"] <= 99 * 1024


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 40, 700])
def test_a_cuda_graph_holds_grouped_experts(num_rows):
    grouped = GroupedExperts(made(16, 128, 64, torch.bfloat16))
    rows = routed(num_rows, 6, 16, 128, torch.bfloat16, absent=0.2)
    static = [each.clone() for each in rows]
    grouped(*static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = grouped(*static)
    others = routed(num_rows, 6, 16, 128, torch.bfloat16, absent=0.5)
    for there, new in zip(static, others, strict=True):
        there.copy_(new)
    graph.replay()
    assert torch.equal(found, grouped(*others))
