"""How many rows are in flight, before anybody knows the cards of the ranks."""

import heapq
import random
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest

from model.engine.config import EngineConfig
from pipeline.cluster.deployment import Deployment
from pipeline.config import PipelineConfig
from pipeline.stages.sizing import choose_batching, choose_sizing, row_bytes

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


def fleet(num_groups, *, num_rows=10**8, store_gib=25, batch_size=256, num_nodes=1):
    """The sizing of as many H100s, each with so much of the object stores."""
    machines = Deployment(
        device="cuda", num_groups=num_groups, num_ranks=1, why="as asked", dispatch=""
    )
    return choose_sizing(
        replace(CONFIG, engine=EngineConfig(max_batch_size=batch_size)),
        machines,
        num_rows=num_rows,
        num_cpus=16 * num_groups,
        store_bytes=num_groups * store_gib << 30,
        num_nodes=num_nodes,
    )


@pytest.mark.parametrize(
    ("num_groups", "batch_rows", "rows_per_group"),
    [(1, 8, 512), (3, 8, 512), (4, 32, 1024), (8, 64, 1024), (64, 64, 1024), (512, 64, 1024)],
)
def test_batches_grow_with_the_fleet(num_groups, batch_rows, rows_per_group):
    found = fleet(num_groups)

    assert found.batching.num_rows == found.batching.num_small_rows == batch_rows
    assert found.read_rows == batch_rows  # else no batch could be as large
    assert found.read_bytes == batch_rows << 20
    assert found.rows_in_flight == num_groups * rows_per_group
    assert found.batches_per_client * batch_rows * found.num_clients == found.rows_in_flight


@pytest.mark.parametrize("num_groups", [8, 64, 512])
def test_what_every_row_passes_through_costs_little(num_groups):
    ms_per_batch = 6.4  # of the driver and the journal, by measurement with 64 rows in each
    assert ms_per_batch / fleet(num_groups).batching.num_rows <= 0.1


@pytest.mark.parametrize("num_groups", [8, 64, 512])
def test_few_rows_stay_in_small_batches(num_groups):
    assert fleet(num_groups, num_rows=100 * num_groups).batching.num_rows == 8
    num_rows = 600 * num_groups
    some = fleet(num_groups, num_rows=num_rows).batching.num_rows
    assert 8 < some <= num_rows / num_groups / 16


def test_a_batch_is_a_small_part_of_what_an_engine_has():
    for batch_size in (16, 100, 128, 256, 1024):
        found = fleet(64, batch_size=batch_size)
        assert found.batching.num_rows <= max(8, found.rows_in_flight / 64 / 8)


@pytest.mark.parametrize("store_gib", [1, 2, 8, 25, 200])
def test_batches_of_a_fleet_take_a_small_part_of_the_object_stores(store_gib):
    found = fleet(64, store_gib=store_gib)
    batch_bytes = found.batching.num_rows * row_bytes(CONFIG)
    assert batch_bytes <= max(64 << 20, found.max_queued_bytes / 64 / 16)
    assert batch_bytes <= 512 << 20
    assert found.rows_in_flight * row_bytes(CONFIG) <= found.max_queued_bytes


def share_of_a_full_engine(batch_rows, room, *, num_sequences=256, num_rows=20_000):
    """Simulate an engine: rows in batches, which have room until all their rows are answered.

    The times of the rows spread by half (log-normal, sigma 0.5).
    """
    generator = random.Random(0)
    now, busy, num_given, waiting = 0.0, 0.0, 0, deque()
    running, left = [], {}
    while True:
        while num_given < num_rows and (len(left) + 1) * batch_rows <= room:
            left[num_given] = batch_rows
            waiting.extend([num_given] * batch_rows)
            num_given += batch_rows
        if num_given >= num_rows:
            return busy / now / num_sequences
        while waiting and len(running) < num_sequences:
            takes = generator.lognormvariate(0, 0.5)
            heapq.heappush(running, (now + takes, waiting.popleft()))
        ends, batch = heapq.heappop(running)
        busy += (ends - now) * (len(running) + 1)
        now = ends
        left[batch] -= 1
        if not left[batch]:
            del left[batch]


@pytest.mark.parametrize("num_groups", [1, 4, 8, 64, 512])
def test_no_engine_starves_while_batches_wait_for_their_slowest_rows(num_groups):
    found = fleet(num_groups)
    room = found.rows_in_flight // num_groups
    assert share_of_a_full_engine(found.batching.num_rows, room) > 0.98


def test_large_batches_need_more_rows_in_flight():
    assert share_of_a_full_engine(64, 512) < 0.75


def test_each_node_has_a_client_that_can_serve_others_too():
    alone, spread = fleet(8), fleet(8, num_nodes=8)

    assert (alone.num_clients, spread.num_clients) == (4, 8)
    assert (alone.min_preparers, spread.min_preparers) == (1, 8)
    assert alone.batches_given_to_client == alone.batches_per_client
    # While others run dry, a client may have the rows of four nodes at the engines.
    rows = spread.batches_per_client * spread.batching.num_rows
    assert rows == 4 * spread.rows_in_flight / 8
    assert spread.batches_given_to_client == 2 * spread.batches_per_client


def test_there_are_no_more_clients_than_engines():
    assert fleet(2, num_nodes=5).num_clients == 2
