"""Measure what all rows of a fleet pass through: driver, writer, supervisor, streams.

Real: `pipeline.driver.drive`, one stream of the fleet with Ray Data, its reading, batches, sizing
and journal, the supervisor and its health checks by remote calls, the leases, the writer and its
parts, the polling and the metrics. As many batches are in flight as in a fleet; for the other
streams the supervisor holds turns and leases.

Simulated: media, prompts, ranks and captions (`simulated`). Groups have 256 sequences each, and a
batch is answered after rows in flight / rows per second, by the cost model of `jobs.plan` for
H100s. Where the whole fleet would have less than 10,000 rows/s, answers come sooner, at that rate.

Computed: milliseconds are processor time of a process, all its threads, for a row of that process.
That of a stream and of its journal is divided by the number of streams. What a process takes by the
second without rows (health checks of all groups, metrics, Ray's own threads) is measured before and
subtracted; it is reported as a share of a processor, and the ceiling is what the rest of the
busiest processor suffices for.
Not in it: a fleet's hundreds of preparers and clients, of which this machine runs a few.
"""

import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.util.placement_group import placement_group

from jobs.bench.flow.simulated import (
    GROUPS_PER_NODE,
    SimulatedGenerate,
    SimulatedPrepare,
    SimulatedRank,
    SimulatedSupervisor,
    rows_per_s_of_group,
)
from jobs.cli.checkpoint import DEMO
from jobs.cli.processes import find
from jobs.cli.ray_cluster import connect
from model.engine.config import EngineConfig
from parallel.groups.client import Groups
from parallel.groups.spec import GroupSpec
from pipeline.cluster.deployment import Deployment
from pipeline.cluster.expert_load import LoadPicture
from pipeline.cluster.groups import heartbeat_s
from pipeline.cluster.nodes import RankNodes
from pipeline.config import PipelineConfig
from pipeline.driver import drive
from pipeline.input.plan import RowGroupSplit
from pipeline.monitor.metrics import Metrics
from pipeline.monitor.poll import Reporter
from pipeline.output.store import open_store
from pipeline.run_plan import RunPlan, check, plan_run
from pipeline.schema import InputColumns
from pipeline.stages.journal import RemoteJournal
from pipeline.stages.ray_backend import running_journal
from pipeline.stages.sizing import Sizing, choose_sizing
from pipeline.stages.streams import run_streams
from pipeline.stages.workers import CostedRows, StageSpec, Workers

_ROWS_PER_S = 10_000  # that a fleet is asked for at least
_SEQUENCES = 256  # of a group
_CPUS, _STORE_GIB = 16, 25  # of a group's machine
_FLEET_ROWS = 10**8  # that a fleet has to do
_WORKERS = 2  # of each stage, that this machine runs
_IDLE_S = 10.0
_ROUNDS, _LEAST_ROWS = 2, 30_000  # of a stream; the latter are three parts
_ROWS_PER_GROUP = 1024  # of the input's row groups
_PROCESSES = {
    "supervisor": re.compile(rb"^ray::SimulatedSupervisor"),
    "journals": re.compile(rb"^ray::InFlightJournal"),
    "streams": re.compile(rb"^ray::Stream\b"),
}
_DIVIDED = ("streams", "journals")  # among the streams
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Mark:
    """What had happened at one moment of a run."""

    at_s: float
    num_rows: int
    cpu_s: Mapping[str, float]  # by process; the writer's thread is a part of the driver

    def __sub__(self, before: "Mark") -> "Mark":
        cpu_s = {name: self.cpu_s[name] - before.cpu_s.get(name, 0.0) for name in self.cpu_s}
        return Mark(self.at_s - before.at_s, self.num_rows - before.num_rows, cpu_s)


def measure_fleet(
    folder: Path, numbers_of_groups: Sequence[int], num_rows: int | None
) -> dict[str, object]:
    """Measure fleets of so many groups; `num_rows` is None for as many as their streams need."""
    return {
        str(number): _measure(folder / str(number), number, num_rows)
        for number in numbers_of_groups
    }


def _measure(folder: Path, num_groups: int, num_rows: int | None) -> dict[str, object]:
    folder.mkdir()
    sizing = fleet_sizing(num_groups)
    in_flight = sizing.of_stream.rows_in_flight
    num_rows = num_rows or max(_ROUNDS * in_flight, _LEAST_ROWS)
    config = _config(
        _write_input(folder / "clips.parquet", num_rows), folder / "captions", num_groups
    )
    store = open_store(config.output)
    store.prepare()
    plan = plan_run(config, check(config), store)
    with connect():
        backend = FleetBackend(plan, sizing, num_groups)
        picture = LoadPicture()
        drive(plan, plan.open_writer(_nothing), backend, picture, show_progress=False)  # type: ignore
        picture.finish()
    return results_of(backend.idle, backend.marks, num_groups, sizing)


def results_of(
    idle: Mark, marks: Sequence[Mark], num_groups: int, sizing: Sizing
) -> dict[str, object]:
    """Reckon milliseconds a row between the first and the last quarter of the marks.

    `idle` is a time without rows.
    """
    taken = marks[3 * len(marks) // 4] - marks[len(marks) // 4]
    standing = {name: cpu_s / idle.at_s for name, cpu_s in idle.cpu_s.items()}
    by = {
        name: 1e3 * max(0.0, cpu_s - standing[name] * taken.at_s) / taken.num_rows
        for name, cpu_s in taken.cpu_s.items()
    }
    for name in _DIVIDED:
        by[name] /= sizing.num_streams
    ceiling = min(1e3 * (1 - standing[name]) / ms for name, ms in by.items() if ms)
    by["driver"] -= by["writer"]  # a thread of it
    return {
        "serial_ms_per_row": round(sum(by.values()), 4),
        "by": {name: round(ms, 4) for name, ms in by.items()},
        "rows_per_s_ceiling": round(ceiling),
        "standing_share_of_a_processor": {name: round(each, 3) for name, each in standing.items()},
        "rows_per_s_of_cost_model": round(num_groups * rows_per_s_of_group()),
        "rows_per_batch": sizing.batching.num_rows,
        "num_streams": sizing.num_streams,
        "num_rows": taken.num_rows,
        "seconds": round(taken.at_s, 1),
    }


def fleet_sizing(num_groups: int) -> Sizing:
    """Return the sizing of a fleet of H100s with as few workers as this machine can run."""
    deployment = _deployment(num_groups)
    sizing = choose_sizing(
        _config(Path("in"), Path("out"), num_groups),
        deployment,
        num_rows=_FLEET_ROWS,
        num_cpus=_CPUS * num_groups,
        store_bytes=(_STORE_GIB << 30) * num_groups,
        num_nodes=math.ceil(num_groups / GROUPS_PER_NODE),
    )
    workers = min(sizing.num_clients, _WORKERS * sizing.num_streams)
    return replace(sizing, num_preparers=workers, num_clients=workers)


class FleetBackend:
    """A `RayBackend` for groups that are simulated, and for one stream of several."""

    def __init__(self, plan: RunPlan, sizing: Sizing, num_groups: int) -> None:
        self.deployment = _deployment(num_groups)
        self.sizing = sizing
        self.marks: list[Mark] = []
        self.idle = Mark(0.0, 0, {})
        self._plan = plan
        self._num_groups = num_groups

    def start_groups(self) -> Groups:
        """Start the supervisor, and lease what the other streams have in flight."""
        rank = _actor(SimulatedRank)
        reservation = placement_group([{"CPU": 0.001}])
        spec = GroupSpec(
            engine_factory=_nothing,
            num_cpus_per_rank=0.001,
            heartbeat_s=heartbeat_s(self.deployment),
            max_requests=self.sizing.rows_in_flight,
        )
        supervisor = _actor(SimulatedSupervisor, spec, self._num_groups, rank, reservation)
        ray.get(supervisor.start.remote())
        groups = Groups(supervisor)
        batch = self.sizing.batching.num_rows
        for _ in range(self._rows_elsewhere // batch):
            ray.get(supervisor.take_turn.remote(groups.client, "", batch, batch * 2312))
        return groups

    def journal(self, before: Mapping[int, int]) -> AbstractContextManager[RemoteJournal]:
        """Run the journal."""
        return running_journal(self._plan.store, before)

    def results(
        self, splits: Sequence[RowGroupSplit], groups: Groups, journal: RemoteJournal
    ) -> Iterator[CostedRows]:
        """Yield the results of one stream, and mark what processes have taken until then."""
        del journal  # the stream has its own
        spec = StageSpec.of(self._plan, self.sizing, one_by_one=False)
        rate = max(self._num_groups * rows_per_s_of_group(), _ROWS_PER_S)
        batch_s = self.sizing.rows_in_flight / rate
        workers = Workers(SimulatedPrepare, partial(SimulatedGenerate, batch_s=batch_s))
        before = _mark(0, _processes())
        time.sleep(_IDLE_S)
        self.idle = _mark(0, _processes()) - before
        num_rows, processes = 0, None
        one_stream = replace(spec, sizing=spec.sizing.of_stream)
        for table, costs in run_streams(
            one_stream, splits, groups, RankNodes((), ()), self._plan.store, workers
        ):
            num_rows += table.num_rows
            processes = processes or _processes()  # to look for them takes long
            self.marks.append(_mark(num_rows, processes))
            yield table, costs

    def reporters(self) -> list[Reporter]:
        """Return those of a fleet that nobody watches."""
        return [Metrics(self._plan.store.uri)]

    def spilled_bytes(self) -> None:
        """Return nothing, since nothing is spilled."""

    @property
    def _rows_elsewhere(self) -> int:
        """Rows that the other streams have in flight."""
        return self.sizing.rows_in_flight - self.sizing.of_stream.rows_in_flight


def _mark(num_rows: int, processes: Mapping[str, Sequence[int]]) -> Mark:
    cpu_s = {"driver": time.process_time(), "writer": _writer_s()}
    for name, pids in processes.items():
        cpu_s[name] = sum(map(_cpu_s, pids))
    return Mark(time.monotonic(), num_rows, cpu_s)


def _processes() -> dict[str, list[int]]:
    return {name: find(os.getpid(), sign) for name, sign in _PROCESSES.items()}


def _actor(kind: type, *arguments: Any) -> Any:
    actor: Any = ray.remote(kind)  # Any: its methods get `.remote` at run time
    return actor.options(num_cpus=0, max_concurrency=10_000).remote(*arguments)


def _writer_s() -> float:
    """Return the processor seconds of the writer's thread so far."""
    writers = [each for each in threading.enumerate() if each.name.startswith("writer")]
    return sum(_seconds(Path(f"/proc/self/task/{each.native_id}/stat")) for each in writers)


def _cpu_s(pid: int) -> float:
    return _seconds(Path(f"/proc/{pid}/stat"))


def _seconds(stat: Path) -> float:
    """Return user and system seconds of a process or thread (proc(5)); 0 if it has ended."""
    with suppress(OSError):
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S
    return 0.0


def _deployment(num_groups: int) -> Deployment:
    return Deployment(
        device="cuda", num_groups=num_groups, num_ranks=1, why="simulated", dispatch=""
    )


def _config(source: Path, output: Path, num_groups: int) -> PipelineConfig:
    return PipelineConfig(
        input=str(source),
        output=str(output),
        checkpoint=DEMO,
        columns=InputColumns(id="key"),
        carry=(),
        engine=EngineConfig(max_batch_size=_SEQUENCES),
        num_groups=num_groups,
    )


def _write_input(path: Path, num_rows: int) -> Path:
    ids = [f"clips/{number:012}.mp4" for number in range(num_rows)]
    media = pa.array([b"-"] * num_rows, pa.large_binary())
    pq.write_table(pa.table({"key": ids, "video": media}), path, row_group_size=_ROWS_PER_GROUP)
    return path


def _nothing(*_: object) -> Any:
    """Check nothing, and make nothing."""
