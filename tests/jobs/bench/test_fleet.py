"""What is reckoned of a fleet, and what takes the place of its models; a small one on Ray."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from jobs.bench import pipeline
from jobs.bench.flow.fleet import Mark, fleet_sizing, results_of
from jobs.bench.flow.simulated import SimulatedGenerate, SimulatedPrepare, rows_per_s_of_group
from pipeline.schema import InputColumns, check_input


class FakeJournal:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    def start_preparing(self, ids):
        self.told.append(("prepare", len(ids)))

    def end_preparing(self, ids):
        self.told.append(("prepared", len(ids)))

    @asynccontextmanager
    async def generating(self, ids):
        self.told.append(("generate", len(ids)))
        yield
        self.told.append(("generated", len(ids)))


class FakeGroups:
    """Grants every turn and lease."""

    @asynccontextmanager
    async def turn(self, num_requests, num_tokens):
        yield self

    @asynccontextmanager
    async def lease(self, num_tokens):
        yield num_tokens


def mark(at_s, num_rows, **cpu_s):
    return Mark(at_s, num_rows, cpu_s)


def test_rows_cost_what_is_more_than_a_time_without_rows():
    idle = mark(10.0, 0, driver=0.5, writer=0.0, supervisor=1.0, streams=0.0, journals=0.0)
    marks = [
        mark(s, 1000 * s, driver=0.15 * s, writer=0.05 * s, supervisor=0.11 * s, streams=0.8 * s,
             journals=0.4 * s)
        for s in range(9)
    ]  # fmt: skip

    found = results_of(idle, marks, 64, replace(fleet_sizing(64), num_streams=4))

    # The driver takes 0.05 s a second without rows, the supervisor 0.1 s.
    by = {"driver": 0.05, "writer": 0.05, "supervisor": 0.01, "streams": 0.2, "journals": 0.1}
    assert found["by"] == pytest.approx(by)
    assert found["serial_ms_per_row"] == pytest.approx(sum(by.values()))
    assert found["rows_per_s_ceiling"] == 5000  # of the streams, which take 0.8 ms each
    assert found["num_rows"] == 4000


def test_a_process_that_is_busy_without_rows_lowers_the_ceiling():
    names = ("writer", "streams", "journals", "supervisor")
    zero = dict.fromkeys(names, 0.0)
    idle = mark(10.0, 0, driver=5.0, **zero)
    marks = [mark(s, 1000 * s, driver=0.6 * s, **zero) for s in range(9)]

    found = results_of(idle, marks, 8, fleet_sizing(8))

    assert found["by"] == pytest.approx({**zero, "driver": 0.1})
    assert found["rows_per_s_ceiling"] == 5000  # half of what 0.1 ms a row alone would give


@pytest.mark.parametrize("num_groups", [8, 64, 512])
def test_the_stream_that_runs_has_as_many_rows_in_flight_as_in_a_fleet(num_groups):
    sizing = fleet_sizing(num_groups)
    part = sizing.of_stream
    assert part.rows_in_flight * sizing.num_streams == 1024 * num_groups
    rows_of_client = part.batches_per_client * part.batching.num_rows
    assert rows_of_client * part.num_clients >= part.rows_in_flight
    assert part.num_clients <= 2


def test_simulated_stages_tell_the_journal_and_give_rows_of_the_output():
    schema = pa.schema({"key": pa.string(), "video": pa.large_binary()})
    row_schema = check_input(schema, InputColumns(id="key"), carry=())
    spec: Any = SimpleNamespace(sizing=fleet_sizing(8).of_stream, row_schema=row_schema)
    ids = pa.array([f"clip {number}" for number in range(100)])
    rows = pa.table({"row_id": ids, "video": pa.array([b"-"] * 100, pa.large_binary())})
    journal: Any = FakeJournal()
    groups: Any = FakeGroups()

    batches = list(SimulatedPrepare(spec, journal)(rows, []))

    async def answer():
        generate = SimulatedGenerate(spec, groups, journal, batch_s=0.001)
        return [await generate(*batch) for batch in batches]

    results = [table for table, _ in asyncio.run(answer())]
    assert [table.num_rows for table in results] == [64, 36]
    assert pa.concat_tables(results)["row_id"].to_pylist() == ids.to_pylist()
    assert results[0].schema == row_schema.output
    assert journal.told[:2] == [("prepare", 100), ("prepared", 100)]
    assert journal.told[2:4] == [("generate", 64), ("generated", 64)]


def test_the_cost_model_gives_an_h100_some_rows_a_second():
    assert 5 < rows_per_s_of_group() < 50


@pytest.mark.slow
@pytest.mark.ray
def test_a_small_fleet_is_measured(capfd, ray_local):
    assert pipeline.main(["fleet", "--groups", "2", "--rows", "4000"]) == 0

    found = json.loads(capfd.readouterr().out.splitlines()[-1])["2"]
    assert found["serial_ms_per_row"] > 0
    assert set(found["by"]) == {"driver", "writer", "supervisor", "journals", "streams"}
    assert found["num_streams"] == 1
