"""What a run uses of a cluster, from what was asked and what is there."""

import re
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from model.engine.config import EngineConfig
from model.json_values import CheckpointError
from parallel.experts.policy import Exchange
from parallel.groups.errors import GroupError
from parallel.groups.supervisor import GroupsStatus
from parallel.ranks.worker import AdmissionPolicy
from pipeline.cluster import deployment as module
from pipeline.cluster.deployment import (
    check_ranks,
    choose_deployment,
    load_engine,
    rank_numbers,
    rank_stats,
    start_groups,
)
from pipeline.config import PipelineConfig
from pipeline.stages.ray_data import _Preparer
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
    with pytest.raises(ValueError, match="there is no GPU here; take --device auto or cpu"):
        choose_deployment(config(device="cuda", **asked), [0], num_experts=64)


def test_a_network_without_experts_keeps_one_rank():
    assert choose_deployment(config(num_groups=1), [8], num_experts=0).num_ranks == 1


@pytest.mark.parametrize(
    ("asked", "num_ranks"),
    [({"num_groups": 2}, 2), ({"expert_parallel": 4}, 4), ({"num_groups": 3, "device": "cpu"}, 3)],
)
def test_ranks_on_cpus_do_not_take_fractions_of_the_same_memory(asked, num_ranks):
    wanted = config(engine=EngineConfig(cache_fraction=0.5), **asked)
    deployment = choose_deployment(wanted, [], num_experts=64)
    with pytest.raises(ValueError, match=rf"cache_fraction=0.5, but {num_ranks} ranks.*cache-gib"):
        start_groups(wanted, deployment, None, load_engine, admission=AdmissionPolicy())


@pytest.mark.parametrize(("asked", "num_gpus"), [({}, 0), ({"num_groups": 2}, 8)])
def test_a_rank_alone_or_with_a_gpu_may_take_a_fraction(asked, num_gpus):
    wanted = config(engine=EngineConfig(cache_fraction=0.5), **asked)
    deployment = choose_deployment(wanted, [num_gpus], num_experts=64)
    # Refused for another reason: the checkpoint "here" does not exist.
    with pytest.raises(CheckpointError, match="here"):
        start_groups(wanted, deployment, None, load_engine, admission=AdmissionPolicy())


@pytest.mark.parametrize("num_experts", [0, 64])
def test_ranks_that_cannot_share_the_experts_are_refused(num_experts):
    with pytest.raises(ValueError, match=rf"expert_parallel=3.*{num_experts} routed experts"):
        check_ranks(config(expert_parallel=3), num_experts)
    check_ranks(config(expert_parallel=1), num_experts)


@pytest.mark.parametrize(
    ("device", "exchange_timeout_s"),
    [
        pytest.param("cpu", 900, id="a rank on CPUs encodes images for minutes"),
        pytest.param("cuda", 120, id="GPUs are fast"),
    ],
)
def test_ranks_wait_for_each_other_as_long_as_a_healthy_one_may_take(
    tmp_path, monkeypatch, device, exchange_timeout_s
):
    tiny_checkpoint(tmp_path)
    specs = []
    fake = SimpleNamespace(start=lambda spec, **_: specs.append(spec))
    monkeypatch.setattr(module, "Groups", fake)
    asked = replace(config(device=device, expert_parallel=2), checkpoint=tmp_path)
    deployment = choose_deployment(asked, [2], num_experts=64)
    start_groups(
        asked, deployment, None, lambda *_: pytest.fail("nobody loads here"), AdmissionPolicy()
    )
    assert [spec.exchange_timeout_s for spec in specs] == [exchange_timeout_s]


def test_a_node_without_the_checkpoint_is_named_by_what_begins_there(tmp_path):
    nothing: Any = None
    message = f"no checkpoint at {tmp_path} on the node {socket.gethostname()}; every node needs it"

    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_engine(tmp_path, EngineConfig(), Exchange(), None)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        _Preparer(nothing, tmp_path, nothing, nothing, nothing, 0, nothing)


def test_the_report_averages_over_ranks_and_says_nothing_of_ranks_alone():
    ranks = (
        {"level": 0.5, "wait_share": 0.1, "steps": 7},
        {"level": 1.0, "wait_share": 0.3, "steps": 9},
    )
    status = GroupsStatus(num_groups=1, num_ready=1, failures=(), rank_stats={0: ranks})
    assert rank_numbers(status) == {"level": 0.75, "wait_share": 0.2, "steps": 8}
    alone = GroupsStatus(num_groups=1, num_ready=1, failures=(), rank_stats={0: ({"steps": 1},)})
    assert rank_numbers(alone) == {}


@pytest.mark.parametrize("error", [GroupError("the supervisor is gone"), ActorDiedError()])
def test_groups_that_are_gone_tell_nothing_of_their_ranks(error):
    asked = []

    def status(*, fresh):
        asked.append(fresh)
        if len(asked) == 2:
            raise error
        return GroupsStatus(num_groups=1, num_ready=1, failures=(), rank_stats={0: ({"a": 1},)})

    assert rank_stats(status, False) == {0: ({"a": 1},)}
    assert rank_stats(status, True) is None
    assert asked == [False, True]
