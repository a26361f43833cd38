"""The driver's loop: rows flow, and are committed as they come."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial

import pyarrow as pa

from model.malloc import own_peak_bytes
from parallel.groups.client import Groups
from parallel.groups.errors import GroupError
from pipeline.cluster.expert_load import LoadPicture, record_load
from pipeline.cluster.groups import Capacities, loading_text, rank_numbers, rank_stats
from pipeline.input.plan import Plan
from pipeline.input.reader import read_split
from pipeline.input.source import Source
from pipeline.monitor.announce import announce
from pipeline.monitor.poll import polling
from pipeline.monitor.progress import open_display
from pipeline.monitor.report import Usage
from pipeline.monitor.snapshot import RankStats, RunMonitor
from pipeline.monitor.stage_costs import Costs
from pipeline.output.behind import writing_behind
from pipeline.output.in_flight import write_journal
from pipeline.output.poison import KILLED_RUNS
from pipeline.output.writer import PartWriter
from pipeline.run_plan import RunPlan
from pipeline.schema import RESULT_FIELDS
from pipeline.stages.inline import InlineBackend, InlineGroup
from pipeline.stages.journal import Journal
from pipeline.stages.ray_backend import RayBackend
from pipeline.stages.workers import CostedRows
from pipeline.status import ErrorCode, Status

Backend = RayBackend | InlineBackend
RunningGroups = Groups | InlineGroup


def drive(
    plan: RunPlan,
    writer: PartWriter,
    backend: Backend,
    picture: LoadPicture,
    *,
    show_progress: bool,
) -> Usage:
    """Start the groups, let the rows flow and commit them; return what it took.

    Some row must be to do. `picture` is started, and the caller finishes it. `show_progress` shows
    on standard error how the run goes.
    """
    try:
        with backend.journal(plan.in_flight_counts) as journal:
            return _drive(plan, writer, backend, journal, picture, show_progress=show_progress)
    finally:
        # Only a driver that is killed leaves counts of the rows that were in flight.
        with suppress(OSError):
            write_journal(plan.store, plan.index.done.left_in(plan.in_flight_counts))


def _start_lines(
    backend: Backend, stats: RankStats | None, capacities: Capacities
) -> Iterator[str]:
    """Say how long the weights took, which is only long on GPUs, what engines chose, what comes."""
    if backend.deployment.device == "cuda":
        yield loading_text(stats)
    if capacities.least is not None:
        yield f"each rank: {capacities.least}"
    yield "waiting for the first row to be read, prepared and answered"


def _drive(
    plan: RunPlan,
    writer: PartWriter,
    backend: Backend,
    journal: Journal,
    picture: LoadPicture,
    *,
    show_progress: bool,
) -> Usage:
    for rows in poisoned_rows(plan.source, plan.rows):
        writer.add(rows)
    if show_progress:
        announce("waiting for an engine to load")
    with closing(backend.start_groups()) as groups, _load_recorded(plan, groups, picture):
        num_done = plan.rows.num_done + len(plan.rows.poisoned)
        monitor = RunMonitor(plan.rows.num_rows, num_done, plan.source.row_schema.columns)
        display = [open_display()] if show_progress else []
        stats = rank_stats(groups.status, fresh=True)
        capacities = Capacities.of(stats)
        for line in _start_lines(backend, stats, capacities) if show_progress else ():
            announce(line)
        reporters = [*display, *backend.reporters()]
        costs = Costs()
        started = latest = time.monotonic()
        longest_pause_s = 0.0
        with (
            _committed_at_end(writer),
            writing_behind(writer) as behind,
            writer.on_time(),
            polling(
                monitor, partial(rank_stats, groups.status), lambda: behind.waited_s, reporters
            ),
        ):
            for rows, cost in _results(plan.rows, groups, backend, journal):
                if show_progress and latest == started:
                    announce(f"the first row came {time.monotonic() - started:.1f} s later")
                earlier, latest = latest, time.monotonic()
                longest_pause_s = max(longest_pause_s, latest - earlier)
                behind.add(rows)
                costs.add(cost)
                monitor.add(rows)
        costs.note_peak("rank", monitor.rank_peak_bytes)
        costs.note_peak("driver", own_peak_bytes())
        status = groups.status()
        # A group that was lost last has no rank to ask: then what was known at the start holds.
        ended = Capacities.of(status.rank_stats)
        return Usage(
            time.monotonic() - started,
            costs,
            backend.spilled_bytes(),
            deployment=str(backend.deployment),
            ranks=rank_numbers(status),
            group_failures=status.failures,
            groups_set_apart=tuple(status.set_apart.values()),
            groups_moved=status.num_moved,
            longest_pause_s=longest_pause_s,
            snapshot=monitor.snapshot(),
            num_preparers=backend.sizing.num_preparers,
            max_rows=backend.sizing.rows_in_flight,
            capacity=ended.least or capacities.least,
            num_sequences=ended.num_sequences or capacities.num_sequences,
            num_out_of_memory=ended.num_out_of_memory,
        )


@contextmanager
def _committed_at_end(writer: PartWriter) -> Iterator[None]:
    """Commit what waits when the `with` ends, also by a failure or Ctrl-C."""
    try:
        yield
    except OSError:
        with suppress(OSError):  # the disk may be full; the first error is the one to tell
            writer.commit()
        raise
    except BaseException:
        writer.commit()
        raise
    writer.commit()


def _results(
    rows: Plan, groups: RunningGroups, backend: Backend, journal: Journal
) -> Iterator[CostedRows]:
    """All rows; those that were in flight whenever runs were killed come last, one at a time."""
    if rows.splits:
        yield from backend.results(rows.splits, groups, journal)
    if rows.quarantined:
        journal.begin_quarantine()
        yield from backend.results(rows.quarantined, groups, journal, one_by_one=True)


@contextmanager
def _load_recorded(plan: RunPlan, groups: RunningGroups, picture: LoadPicture) -> Iterator[None]:
    """Record what the experts computed, also of a run that does not come to its end."""
    checkpoint = plan.recipe.fields["checkpoint"]
    try:
        yield
    except BaseException:
        with suppress(GroupError, OSError):  # the first error is the one to tell
            record_load(plan.store, groups.expert_load(), checkpoint, picture)
            picture.finish()
        raise
    record_load(plan.store, groups.expert_load(), checkpoint, picture)


def poisoned_rows(source: Source, rows: Plan) -> Iterator[pa.Table]:
    """Yield the results of rows that runs were killed with too often to try them again."""
    code = ErrorCode.POISON_ROW.value
    known = {"status": Status.ERROR.value, "error_code": code, "error": KILLED_RUNS}
    for split in rows.poisoned:
        for table in read_split(source.filesystem, source.row_schema, split, max_rows=1):
            results = source.row_schema.carry(table).add_column(0, "row_id", table["row_id"])
            for field in (*RESULT_FIELDS[1:], *source.row_schema.extra):
                values = pa.array([known.get(field.name)] * table.num_rows, field.type)
                results = results.append_column(field, values)
            yield results
