"""How many rows are in flight, before anybody knows the cards of the ranks."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.engine.config import EngineConfig
from pipeline.cluster.deployment import Deployment
from pipeline.config import PipelineConfig
from pipeline.stages.sizing import choose_batching, choose_sizing

CONFIG = PipelineConfig(input="in", output="out", checkpoint=Path("here"))


def sizing(device, *, num_groups=1, num_rows=10**6, **engine):
    config = replace(CONFIG, engine=EngineConfig(**engine))
    machines = Deployment(
        device=device, num_groups=num_groups, num_ranks=1, why="as asked", dispatch=""
    )
    return choose_sizing(config, machines, num_rows=num_rows, num_cpus=8, store_bytes=1 << 40)


@pytest.mark.parametrize(
    ("device", "engine", "expected"),
    [
        pytest.param("cpu", {}, 2 * 32, id="CPUs"),
        pytest.param("cuda", {}, 2 * 256, id="the largest batch of any card"),
        pytest.param("cuda", {"max_batch_size": 7}, 2 * 7, id="as asked on a GPU"),
        pytest.param("cpu", {"max_batch_size": 7}, 2 * 7, id="as asked on CPUs"),
    ],
)
def test_there_are_rows_for_the_largest_batch(device, engine, expected):
    assert sizing(device, **engine).rows_in_flight >= expected
    assert sizing(device, num_groups=3, **engine).rows_in_flight == 3 * expected


def test_requests_wait_for_half_a_batch_on_cpus_only():
    assert sizing("cpu").admission.min_batch == 16
    assert sizing("cpu", max_batch_size=8).admission.min_batch == 4
    assert sizing("cuda").admission.min_batch == 1


def test_no_request_waits_for_more_rows_than_there_are():
    assert sizing("cpu", num_rows=3).admission.min_batch == 1
    assert sizing("cpu", num_rows=20).admission.min_batch == 10


def test_rows_travel_together_where_large_batches_wait_for_them():
    assert choose_batching(CONFIG, 1, "cpu").num_rows == 1
    assert choose_batching(CONFIG, 1, "cuda").num_rows > 1
