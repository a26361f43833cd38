"""The groups of a deployment: what is refused before they start, and what they tell."""

import re
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from model.engine.config import EngineConfig
from model.engine.fit.capacity import Capacity
from model.json_values import CheckpointError
from parallel.experts.policy import Exchange
from parallel.groups.errors import GroupError
from parallel.groups.supervisor import GroupsStatus
from parallel.ranks.admission import AdmissionPolicy
from pipeline.cluster import groups as module
from pipeline.cluster.deployment import choose_deployment
from pipeline.cluster.groups import (
    Capacities,
    load_engine,
    loading_text,
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
    ("asked", "num_ranks"),
    [({"num_groups": 2}, 2), ({"expert_parallel": 4}, 4), ({"num_groups": 3, "device": "cpu"}, 3)],
)
def test_ranks_on_cpus_do_not_take_fractions_of_the_same_memory(asked, num_ranks):
    wanted = config(engine=EngineConfig(cache_fraction=0.5), **asked)
    deployment = choose_deployment(wanted, [], num_experts=64)
    with pytest.raises(ValueError, match=rf"cache_fraction=0.5, but {num_ranks} ranks.*cache-gib"):
        start_groups(
            wanted, deployment, None, load_engine, admission=AdmissionPolicy(), max_requests=8
        )


@pytest.mark.parametrize(("asked", "num_gpus"), [({}, 0), ({"num_groups": 2}, 8)])
def test_a_rank_alone_or_with_a_gpu_may_take_a_fraction(asked, num_gpus):
    wanted = config(engine=EngineConfig(cache_fraction=0.5), **asked)
    deployment = choose_deployment(wanted, [num_gpus], num_experts=64)
    # Refused for another reason: the checkpoint "here" does not exist.
    with pytest.raises(CheckpointError, match="here"):
        start_groups(
            wanted, deployment, None, load_engine, admission=AdmissionPolicy(), max_requests=8
        )


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
        asked, deployment, None, lambda *_: pytest.fail("nobody loads here"), AdmissionPolicy(), 8
    )
    assert [spec.exchange_timeout_s for spec in specs] == [exchange_timeout_s]


def test_a_node_without_the_checkpoint_is_named_by_what_begins_there(tmp_path):
    nothing: Any = None
    spec: Any = SimpleNamespace(config=replace(config(), checkpoint=tmp_path))
    message = f"no checkpoint at {tmp_path} on the node {socket.gethostname()}; every node needs it"

    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_engine(tmp_path, EngineConfig(), Exchange(), None)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        _Preparer(spec, nothing)


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


def test_the_capacity_of_a_run_is_that_of_the_rank_with_the_smallest_cache():
    large = Capacity(
        batch_size=256,
        cache_gib=80.0,
        cache_tokens=2_000_000,
        step_tokens=8192,
        vision_patches=16384,
        is_batch_given=False,
        is_cache_given=False,
        card_gib=139.8,
    )
    small = replace(large, batch_size=64, cache_gib=3.0, cache_tokens=90_000, card_gib=22.0)
    ranks = [
        {**large.numbers(), "steps": 3.0, "out_of_memory": 2.0},
        {**small.numbers(), "out_of_memory": 1.0},
        {},  # it still loads
    ]
    found = Capacities.of({0: ranks[:2], 3: ranks[2:]})
    assert found == Capacities(small, 320, 3)
    assert Capacities.of(None) == Capacities.of({0: [{"steps": 1.0}]}) == Capacities()


def test_the_slowest_rank_says_how_long_the_weights_took():
    loaded = [{"load_s": 2.0, "load_gb_per_s": 4.0}, {"load_s": 12.34, "load_gb_per_s": 2.678}]
    text = loading_text({0: ({}, loaded[0]), 1: (loaded[1],)})
    assert text == "the slowest rank read its weights in 12.3 s, 2.68 GB/s"
    assert loading_text({0: ({},)}) == loading_text(None) == ""
