"""How a run uses a cluster, from what was asked and what is there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.engine import dtype
from pipeline.cluster.deployment import check_ranks, choose_deployment
from pipeline.config import PipelineConfig
from tests.tiny import tiny_checkpoint


def config(**changes) -> PipelineConfig:
    return PipelineConfig(input="in", output="out", checkpoint=Path("here"), **changes)


@pytest.mark.parametrize(
    ("asked", "num_gpus", "chosen"),
    [
        pytest.param({}, 0, ("cpu", 1, 1), id="no GPU"),
        pytest.param({"expert_parallel": 4}, 0, ("cpu", 1, 4), id="ranks on CPUs"),
        pytest.param({}, 8, ("cuda", 8, 1), id="every GPU has a copy"),
        pytest.param({"expert_parallel": 4}, 8, ("cuda", 2, 4), id="groups follow from ranks"),
        pytest.param({"num_groups": 2}, 8, ("cuda", 2, 4), id="ranks follow from groups"),
        pytest.param({"num_groups": 1}, 7, ("cuda", 1, 4), id="ranks divide the experts"),
        pytest.param({"num_groups": 9}, 8, ("cuda", 9, 1), id="more groups than GPUs"),
        pytest.param({"num_groups": 3, "expert_parallel": 2}, 8, ("cuda", 3, 2), id="as asked"),
        pytest.param({"device": "cpu"}, 8, ("cpu", 1, 1), id="GPUs that nobody wants"),
    ],
)
def test_what_is_left_open_follows_from_the_cluster_and_is_explained(asked, num_gpus, chosen):
    deployment = choose_deployment(config(**asked), [num_gpus], num_experts=64)
    assert (deployment.device, deployment.num_groups, deployment.num_ranks) == chosen
    assert len(deployment.why) > 5
    assert str(deployment).startswith(f"{chosen[1]} group")
    assert ("local" in deployment.dispatch) == (chosen[2] == 1)


@pytest.mark.parametrize(
    ("asked", "nodes", "chosen"),
    [
        pytest.param({"num_groups": 1}, [4, 4], (1, 4), id="a group lies on one node"),
        pytest.param({"num_groups": 1, "placement": "PACK"}, [4, 4], (1, 8), id="or on two"),
        pytest.param({"num_groups": 3}, [4, 4], (3, 2), id="the third goes beside another"),
        pytest.param({"expert_parallel": 2}, [3, 3], (2, 2), id="one GPU of each is left over"),
        pytest.param({"expert_parallel": 2, "placement": "SPREAD"}, [3, 3], (3, 2), id="none is"),
        pytest.param({}, [3, 0, 2], (5, 1), id="one without a GPU"),
        pytest.param(
            {"device": "cuda", "expert_parallel": 2, "num_groups": 3}, [0], (3, 2), id="to come"
        ),
    ],
)
def test_groups_are_as_many_as_the_nodes_hold(asked, nodes, chosen):
    deployment = choose_deployment(config(**asked), nodes, num_experts=64)
    assert (deployment.num_groups, deployment.num_ranks) == chosen


def test_nodes_may_come_for_groups_whose_number_is_given():
    deployment = choose_deployment(config(expert_parallel=8, num_groups=2), [4], num_experts=64)
    assert (deployment.num_groups, deployment.num_ranks) == (2, 8)


def test_ranks_that_no_node_can_hold_are_refused_with_what_would_help():
    asked = config(expert_parallel=8)
    wanted = r"8 GPUs on one node, .* 12 GPUs \(2 nodes of 4, 2 of 2\).* most 4, .*--placement pack"
    with pytest.raises(ValueError, match=wanted):
        choose_deployment(asked, [4, 2, 4, 2], num_experts=64)
    asked = replace(asked, placement="SPREAD")
    assert choose_deployment(asked, [4, 2, 4, 2], num_experts=64).num_ranks == 8
    with pytest.raises(ValueError, match=r"8 GPUs in all, .* 4 GPUs; .* most 4, or add nodes"):
        choose_deployment(asked, [4], num_experts=64)


@pytest.mark.parametrize("asked", [{}, {"num_groups": 2}, {"expert_parallel": 2}])
def test_gpus_that_are_not_there_are_refused(asked):
    with pytest.raises(ValueError, match="there is no GPU here; use --device auto or cpu"):
        choose_deployment(config(device="cuda", **asked), [0], num_experts=64)


def test_a_network_without_experts_keeps_one_rank():
    assert choose_deployment(config(num_groups=1), [8], num_experts=0).num_ranks == 1


@pytest.mark.parametrize("num_experts", [0, 64])
def test_ranks_that_cannot_share_the_experts_are_refused(num_experts):
    with pytest.raises(ValueError, match=rf"expert_parallel=3.*{num_experts} routed experts"):
        check_ranks(config(expert_parallel=3), num_experts)
    check_ranks(config(expert_parallel=1), num_experts)


@pytest.mark.parametrize(
    ("asked", "num_gpus", "ranks_per_machine"),
    [({}, 0, 1), ({"num_groups": 2, "expert_parallel": 4}, 0, 8), ({"num_groups": 2}, 8, 1)],
)
def test_ranks_on_cpus_may_all_share_one_machine(asked, num_gpus, ranks_per_machine):
    wanted = config(**asked)
    deployment = choose_deployment(wanted, [num_gpus], num_experts=64)
    engine = deployment.engine_of(wanted.engine)
    assert (engine.device, engine.ranks_per_machine) == (deployment.device, ranks_per_machine)


@pytest.mark.parametrize("is_old", [True, False])
def test_a_dtype_that_is_not_the_stored_one_is_said(tmp_path, monkeypatch, is_old):
    monkeypatch.setattr(dtype, "has_bfloat16_products", lambda: not is_old)
    tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    wanted = replace(config(), checkpoint=tmp_path)
    plain = choose_deployment(wanted, [], num_experts=64)
    said = "; this machine computes in float32, because this processor has no instructions for"
    assert (said in str(plain.explained(wanted))) == is_old
    assert said not in str(plain)
