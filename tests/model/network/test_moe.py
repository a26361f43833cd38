import pytest
import torch
import torch.nn.functional as F

from model.network.moe import Experts, ExpertShard, LocalDispatcher, MoE, Router, add_rows
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
    moe = MoE(config, ExpertShard(range(16), LocalDispatcher(16)))
    x = torch.randn(num_tokens, config.hidden_size)
    torch.testing.assert_close(moe(x), one_by_one(moe, x), rtol=0, atol=1e-5)
    moe(x[:5])
    chosen = torch.cat((moe.gate(x)[0], moe.gate(x[:5])[0]))
    assert torch.equal(moe.rows_computed, chosen.flatten().bincount(minlength=16))


@pytest.mark.parametrize(
    "favourite", [pytest.param(None, id="spread"), pytest.param(5, id="every token wants expert 5")]
)
def test_each_token_gets_the_output_of_each_of_its_experts(favourite):
    torch.manual_seed(0)
    x, scores = torch.randn(9, 4), torch.rand(9, 8)
    if favourite is not None:
        scores[:, favourite] = 2.0
    expert_ids = scores.topk(3).indices
    dispatch = LocalDispatcher(8).dispatch(x, expert_ids, torch.ones(9, 3))
    expert = torch.arange(8).repeat_interleave(dispatch.rows_per_expert)
    added = dispatch.rows * 0 + expert[:, None]  # "expert e gives e"
    assert torch.equal(dispatch.combine(added)[:, 0], expert_ids.sum(1).float())
    assert torch.equal(dispatch.combine(dispatch.rows * 0 + 1), torch.full((9, 4), 3.0))


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
    (experts(rows, torch.tensor([3, 0, 5, 2])) ** 2).mean().backward()
    assert experts.gate_up_proj.grad is not None
    assert experts.gate_up_proj.grad[1].abs().sum() == 0
    assert experts.gate_up_proj.grad[0].abs().sum() > 0
    assert rows.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weighted_sums_are_those_of_float64_rounded_once(dtype):
    torch.manual_seed(0)
    y, which, weights = torch.randn(12, 64).to(dtype), torch.randperm(12), torch.rand(12)
    counts = torch.tensor([3, 0, 6, 1])
    sums = add_rows(y, which, counts, weights)
    assert sums.dtype == dtype
    products = y.double()[which] * weights.double()[:, None]
    for got, rows in zip(sums, products.split([*counts.tolist(), 2]), strict=False):
        # Half a step of the dtype, and what float32 and two numbers for a weight leave over.
        torch.testing.assert_close(
            got.double(), rows.sum(0), rtol=torch.finfo(dtype).eps * 0.52, atol=1e-5
        )


def test_rows_beyond_all_sums_are_ignored_whatever_they_are():
    y = torch.tensor([[1.0], [torch.nan], [3.0]])
    sums = add_rows(y, torch.tensor([2, 0, 1]), torch.tensor([1, 1]), torch.ones(3))
    assert sums.tolist() == [[3.0], [1.0]]
    assert add_rows(y[:0], torch.zeros(0).long(), torch.zeros(2).long()).tolist() == [[0.0]] * 2
