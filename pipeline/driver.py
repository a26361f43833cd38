"""The driver's loop: rows flow, and are committed as they come."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from model.malloc import own_peak_bytes
from parallel.experts.load import ExpertLoad
from parallel.groups.client import Groups
from parallel.groups.errors import GroupError
from pipeline.cluster.deployment import rank_numbers
from pipeline.input.plan import Plan
from pipeline.input.reader import read_split
from pipeline.input.source import Source
from pipeline.monitor.metrics import Metrics
from pipeline.monitor.poll import Reporter, polling
from pipeline.monitor.progress import open_display
from pipeline.monitor.report import Usage
from pipeline.monitor.snapshot import RunMonitor
from pipeline.monitor.stage_costs import Cost, Costs, ObjectStoreUse, object_store_use
from pipeline.output.in_flight import MAX_SHARED_STARTS, MAX_STARTS, InFlightJournal, write_journal
from pipeline.output.store import Store
from pipeline.output.writer import PartWriter
from pipeline.schema import RESULT_FIELDS, ErrorCode, Status
from pipeline.stages.ray_data import Flow

_CLOSE_TIMEOUT_S = 30.0


def drain(
    flow: Flow,
    what: Plan,
    writer: PartWriter,
    start_groups: Callable[[], Groups],
    starts: Any,
    record: Callable[[ExpertLoad], None],
    also: Sequence[Reporter],
    *,
    output: str,
    show_progress: bool,
) -> Usage:
    """Start the groups, let the rows flow and commit them.

    Args:
        flow: the stages.
        what: the rows.
        writer: takes the results.
        start_groups: called once.
        starts: handle of the `InFlightJournal` actor.
        record: keeps what the experts computed, also of a run that does not come to its end.
        also: who is to know how the run goes, beside the display and the metrics.
        output: its name, in the metrics.
        show_progress: show on standard error how the run goes.

    Returns:
        What it took; `machines` is left open.
    """
    costs = Costs()
    gcs_address = ray.get_runtime_context().gcs_address
    store_before = object_store_use(gcs_address)
    for rows in give_up(flow.source, what):
        writer.add(rows)
    with closing(start_groups()) as groups, _load_recorded(groups, record):
        num_done = what.num_done + len(what.poisoned)
        watch = RunMonitor(what.num_rows, num_done, flow.source.row_schema.columns)
        shows = (open_display(show=show_progress), Metrics(output), *also)
        started = latest = time.monotonic()
        longest_pause_s = 0.0
        try:
            with writer.on_time(), polling(watch, groups, writer, shows):
                for rows, cost in _results(flow, what, groups, starts):
                    earlier, latest = latest, time.monotonic()
                    longest_pause_s = max(longest_pause_s, latest - earlier)
                    writer.add(rows)
                    costs.add(cost)
                    watch.add(rows)
        except OSError:
            with suppress(OSError):  # the disk may be full; the first error is the one to tell
                writer.commit()
            raise
        except BaseException:
            writer.commit()  # also what was done before a failure or Ctrl-C
            raise
        writer.commit()
        costs.note_peak("rank", watch.rank_peak_bytes)
        costs.note_peak("driver", own_peak_bytes())
        status = groups.status()
        return Usage(
            time.monotonic() - started,
            costs,
            _spilled(store_before, object_store_use(gcs_address)),
            ranks=rank_numbers(status),
            group_failures=status.failures,
            longest_pause_s=longest_pause_s,
            snapshot=watch.snapshot(),
            num_preparers=flow.sizing.num_preparers,
            max_rows=flow.sizing.rows_in_flight,
        )


def _spilled(before: ObjectStoreUse | None, after: ObjectStoreUse | None) -> int | None:
    if before is None or after is None:
        return None
    return after.spilled_bytes - before.spilled_bytes


def _results(
    flow: Flow, what: Plan, groups: Groups, starts: Any
) -> Iterator[tuple[pa.Table, list[Cost]]]:
    """Rows that were being worked on whenever runs were killed come last, one at a time."""
    if what.splits:
        yield from flow.results(what.splits, groups, starts)
    if what.quarantined:
        ray.get(starts.begin_quarantine.remote())
        one_by_one = replace(flow, sizing=replace(flow.sizing, read_rows=1))
        yield from one_by_one.results(what.quarantined, groups, starts)


@contextmanager
def _load_recorded(groups: Groups, record: Callable[[ExpertLoad], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(GroupError, OSError):  # the first error is the one to tell
            record(groups.expert_load())
        raise
    record(groups.expert_load())


@contextmanager
def open_journal(store: Store, before: Mapping[int, int], writer: PartWriter) -> Iterator[Any]:
    """Run a `InFlightJournal` actor on this node; only a killed driver leaves its counts behind."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(InFlightJournal)  # Any: its methods get their `.remote` at run time
    log = actor.options(num_cpus=0, scheduling_strategy=here).remote(store, before)
    try:
        yield log
    finally:
        with suppress(RayError):  # after this it writes no more; or it is dead
            ray.get(log.close.remote(), timeout=_CLOSE_TIMEOUT_S)
        ray.kill(log)
        with suppress(OSError):
            write_journal(store, writer.unfinished(before))


def give_up(source: Source, what: Plan) -> Iterator[pa.Table]:
    """The results of rows that were worked on, at last alone, whenever runs were killed."""
    message = (
        f"{MAX_STARTS} runs were killed while this row was being worked on, the last "
        f"{MAX_STARTS - MAX_SHARED_STARTS} of them with nothing else"
    )
    known = {
        "status": Status.ERROR.value,
        "error_code": ErrorCode.POISON_ROW.value,
        "error": message,
    }
    for piece in what.poisoned:
        for rows in read_split(source.filesystem, source.row_schema, piece, max_rows=1):
            table = source.row_schema.carry(rows).add_column(0, "row_id", rows["row_id"])
            for field in (*RESULT_FIELDS[1:], *source.row_schema.extra):
                values = pa.array([known.get(field.name)] * rows.num_rows, field.type)
                table = table.append_column(field, values)
            yield table
