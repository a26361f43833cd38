import pytest
import torch
import torch.nn.functional as F

from model.network.moe import (
    Experts,
    ExpertShard,
    LocalDispatcher,
    MoE,
    Router,
    RowsByExpert,
    add_rows,
    add_rows_plainly,
)
from tests.tiny import tiny_config


def one_by_one(moe, x):
    """Compute in the simplest way: every token visits its experts by itself."""
    expert_ids, weights = moe.gate(x)
    y = torch.zeros_like(x)
    for token in range(len(x)):
        for expert, weight in zip(expert_ids[token], weights[token], strict=True):
            gate, up = F.linear(x[token], moe.experts.gate_up_proj[expert]).chunk(2)
            y[token] += weight * F.linear(F.silu(gate) * up, moe.experts.down_proj[expert])
    return y if moe.shared_experts is None else y + moe.shared_experts(x)


@pytest.mark.parametrize("num_tokens", [0, 1, 23])
@pytest.mark.parametrize("num_shared", [0, 2])
def test_experts_together_equal_experts_one_by_one(num_tokens, num_shared):
    config = tiny_config({"n_shared_experts": num_shared}).text
    torch.manual_seed(0)
    moe = MoE(config, ExpertShard(range(16), LocalDispatcher()))
    x = torch.randn(num_tokens, config.hidden_size)
    torch.testing.assert_close(moe(x), one_by_one(moe, x), rtol=0, atol=1e-5)
    moe(x[:5])
    chosen = torch.cat((moe.gate(x)[0], moe.gate(x[:5])[0]))
    assert torch.equal(moe.experts.rows_computed, chosen.flatten().bincount(minlength=16))


@pytest.mark.parametrize(
    "favourite", [pytest.param(None, id="spread"), pytest.param(5, id="every token wants expert 5")]
)
def test_each_token_gets_the_output_of_each_of_its_experts(favourite):
    torch.manual_seed(0)
    x, scores = torch.randn(9, 4), torch.rand(9, 8)
    if favourite is not None:
        scores[:, favourite] = 2.0
    expert_ids = scores.topk(3).indices
    dispatch = LocalDispatcher().dispatch(x, expert_ids, torch.ones(9, 3))
    by_expert = RowsByExpert(dispatch.arrived, num_local_experts=8)
    expert = torch.arange(8).repeat_interleave(by_expert.rows_per_expert)
    added = by_expert.rows * 0 + expert[:, None]  # "expert e gives e"
    home = dispatch.combine(by_expert.sums(added))
    assert torch.equal(home[:, 0], expert_ids.sum(1).float())
    home = dispatch.combine(by_expert.sums(by_expert.rows * 0 + 1))
    assert torch.equal(home, torch.full((9, 4), 3.0))


ROWS = torch.tensor([[1.0], [2.0], [3.0], [4.0]])  # a, b, c, d in the example of `RowsByExpert`
LOCAL_IDS = torch.tensor([[0, 1], [1, -1], [0, -1], [1, 0]])


@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32])
def test_rows_stand_by_expert_and_their_sums_by_row_again(id_dtype):
    weights = torch.tensor([[0.5, 0.25], [0.5, 9.0], [2.0, 9.0], [1.0, 3.0]])
    by_expert = RowsByExpert((ROWS, LOCAL_IDS.to(id_dtype), weights), num_local_experts=2)
    assert by_expert.rows[:, 0].tolist() == [1, 3, 4, 1, 2, 4]  # a c d | a b d
    y = torch.tensor([[10.0], [20.0], [30.0], [100.0], [200.0], [300.0]])
    a, b, c, d = by_expert.sums(y)[:, 0].tolist()
    assert a == 0.5 * 10 + 0.25 * 100
    assert b == 0.5 * 200
    assert c == 2.0 * 20
    assert d == 1.0 * 300 + 3.0 * 30


def test_copies_of_no_expert_are_not_counted():
    by_expert = RowsByExpert((ROWS, LOCAL_IDS, torch.ones(4, 2)), num_local_experts=3)
    assert by_expert.rows_per_expert.tolist() == [3, 3, 0]


def test_rows_beyond_the_last_expert_are_never_read():
    x = torch.arange(8.0).view(4, 2)
    local_ids = torch.tensor([[1, -1], [-1, -1], [0, 1], [-1, 0]])
    weights = torch.tensor([[0.5, 9.0], [9.0, 9.0], [1.0, 2.0], [9.0, 4.0]])
    by_expert = RowsByExpert((x, local_ids, weights), num_local_experts=2, num_copies=8)
    assert by_expert.rows[:4].tolist() == [[4, 5], [6, 7], [0, 1], [4, 5]]
    assert by_expert.rows_per_expert.tolist() == [2, 2]
    y = by_expert.rows.clone()
    y[4:] = torch.nan
    assert by_expert.sums(y).tolist() == [[0, 0.5], [0, 0], [12, 15], [24, 28]]


def test_the_bias_chooses_and_does_not_weight():
    config = tiny_config({"num_experts_per_tok": 2, "routed_scaling_factor": 1.0}).text
    router = Router(config)
    with torch.no_grad():
        router.e_score_correction_bias[[3, 11]] = 100.0
    expert_ids, weights = router(torch.randn(6, config.hidden_size))
    assert expert_ids.sort(1).values.tolist() == [[3, 11]] * 6
    torch.testing.assert_close(weights.sum(1), torch.ones(6))  # of unbiased, normalised scores


def test_routing_stays_in_the_best_groups():
    shape = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}
    for method in ("noaux_tc", "group_limited_greedy"):
        router = Router(tiny_config({**shape, "topk_method": method}).text)
        expert_ids, _ = router(torch.randn(50, 128))
        assert max(len(set(row)) for row in (expert_ids // 4).tolist()) <= 2


def test_softmax_scores_without_normalisation_sum_to_at_most_the_factor():
    config = tiny_config(
        {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}
    ).text
    router = Router(config)
    _, weights = router(torch.randn(10, config.hidden_size))
    assert not hasattr(router, "e_score_correction_bias")
    assert (weights.sum(1) <= config.routed_scaling_factor).all()


def test_bfloat16_activations_are_routed_in_float32():
    config = tiny_config().text
    router = Router(config).bfloat16()
    x = torch.randn(4, config.hidden_size).bfloat16()
    _, weights = router(x)
    scores = F.linear(x.float(), router.weight.float()).sigmoid()
    top = scores.topk(config.num_experts_per_tok).values
    expected = top / top.sum(-1, keepdim=True) * config.routed_scaling_factor
    torch.testing.assert_close(weights, expected)


def test_experts_learn():
    torch.manual_seed(0)
    experts = Experts(4, 16, 16)
    rows = torch.randn(10, 16, requires_grad=True)
    (experts.products(rows, torch.tensor([3, 0, 5, 2])) ** 2).mean().backward()
    assert experts.gate_up_proj.grad is not None
    assert experts.gate_up_proj.grad[1].abs().sum() == 0
    assert experts.gate_up_proj.grad[0].abs().sum() > 0
    assert rows.grad is not None


@pytest.mark.parametrize("add", [add_rows, add_rows_plainly])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weighted_sums_are_those_of_float64_rounded_once(dtype, add):
    torch.manual_seed(0)
    y, which, weights = torch.randn(12, 64).to(dtype), torch.randperm(12), torch.rand(4, 6)
    places = torch.full((4, 6), -1)
    places[0, 2:5], places[2], places[3, :1] = which[:3], which[3:9], which[9:10]
    sums = add(y, places, weights)
    assert sums.dtype == dtype
    for got, row, by in zip(sums, places, weights, strict=True):
        expected = (y.double()[row[row >= 0]] * by.double()[row >= 0, None]).sum(0)
        # Half a step of the dtype, and what float32 and two numbers for a weight leave over.
        torch.testing.assert_close(
            got.double(), expected, rtol=torch.finfo(dtype).eps * 0.52, atol=1e-5
        )


@pytest.mark.parametrize("add", [add_rows, add_rows_plainly])
def test_rows_that_no_sum_names_are_ignored_whatever_they_are(add):
    y = torch.tensor([[torch.nan], [1.0], [torch.nan], [3.0]])
    weights = torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]])
    assert add(y, torch.tensor([[3, -1], [-1, 1]]), weights).tolist() == [[3.0], [1.0]]
    assert add(y[:0], torch.full((2, 3), -1)).tolist() == [[0.0]] * 2
    assert add(y, torch.zeros(0, 3).long(), torch.zeros(0, 3)).shape == (0, 1)


# In bfloat16 embedding_bag rounds ties up, and not to even as torch does elsewhere.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sums_without_weights_have_the_same_bits_on_every_device(dtype):
    torch.manual_seed(0)
    y, places = torch.randn(40, 16).to(dtype), torch.randint(-10, 40, (30, 5))
    assert torch.equal(add_rows(y, places), add_rows_plainly(y, places))
