"""One run: `PipelineConfig` in, `Report` out.

What can be refused is refused with a `ValueError` before Ray is touched: arguments, checkpoint,
input, output. From then on a failure is a `RunError`, and what is committed stays.
"""

import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial

import pyarrow as pa
import ray
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError, RayTaskError, UserCodeException
from tqdm import tqdm

from parallel.groups.errors import GroupError
from pipeline.cluster.cpu import CpuAffinity
from pipeline.cluster.deployment import (
    Deployment,
    EngineFactory,
    choose_deployment,
    load_engine,
    start_groups,
    wanted_load,
)
from pipeline.cluster.expert_load import record_load
from pipeline.config import PipelineConfig, recipe_of
from pipeline.driver import drain, open_journal
from pipeline.fetch.media_access import MediaAccess
from pipeline.input.manifest import in_known_order, note_files
from pipeline.input.plan import Plan, plan
from pipeline.input.source import Source
from pipeline.monitor.report import OutputCounts, Report, Usage
from pipeline.output import ledger
from pipeline.output.in_flight import read_journal
from pipeline.output.lock import lock_output
from pipeline.output.recipe import claim_output, write_json
from pipeline.output.store import Store, open_store
from pipeline.output.writer import PartWriter
from pipeline.preflight import open_checkpoint, open_input
from pipeline.stages.ray_data import Flow
from pipeline.stages.sizing import choose_sizing

_STORY = "_error.txt"
_FAILURES = (RayError, ExecutionTimeoutError, RuntimeError, ValueError, OSError, pa.ArrowException)


class RunError(RuntimeError):
    """The run stopped before its end; the same command continues it."""


def run(
    config: PipelineConfig,
    *,
    connect: Callable[[], AbstractContextManager[None]],
    engine_factory: EngineFactory = load_engine,
    show_progress: bool = True,
) -> Report:
    """Caption every row of the input that the output does not hold yet.

    checkpoint, input and output are checked --> connect --> groups start --> rows flow --> report

    Args:
        config: what to do.
        connect: connects this process to Ray for the time of a `with`; not called when no row is
            left to do.
        engine_factory: makes the engine of each rank.
        show_progress: show on standard error how it goes.

    Raises:
        ValueError: refused; nothing was done.
        RunError: stopped half-way.
    """
    text = open_checkpoint(config)
    load = wanted_load(config, text)
    source = open_input(config)
    media = MediaAccess(
        base=config.media_folder or source.folder,
        allowed_prefixes=config.allowed_uris,
        allowed_folders=config.allowed_folders,
        max_bytes=config.instructions.limits.max_bytes,
    )
    store = open_store(config.output)
    with lock_output(store) as lock:
        recipe = recipe_of(config, source.row_schema)
        schema = source.row_schema.output.with_metadata(recipe.parquet_metadata)
        claim_output(store, recipe, new_recipe=config.new_recipe)
        parts = ledger.committed_parts(store)
        source = in_known_order(source, store, parts)
        note_files(source, store)
        if config.run_yaml is not None:
            store.write("_run.yaml", config.run_yaml.encode())
        held = ledger.read_index(store, parts, schema, retry=config.retry_failed)
        starts = read_journal(store, held.done)
        what = plan(source, held, limit=config.limit, in_flight_counts=starts)
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        writer = PartWriter(
            store,
            run_id,
            schema,
            held,
            rows_per_part=config.rows_per_part,
            max_part_age_s=config.max_part_age_s,
            in_flight_counts=starts,
            check=lock.check,
        )
        usage = Usage()
        if what.num_todo:
            with (
                connect(),
                _as_run_error(writer, store),
                open_journal(store, starts, writer) as log,
            ):
                machines = choose_deployment(config, _gpus_of_nodes(), text.n_routed_experts)
                if show_progress:
                    tqdm.write(str(machines), file=sys.stderr)
                flow = _flow(config, machines, source, media, what)
                start = partial(
                    start_groups, config, machines, load, engine_factory, flow.sizing.company
                )
                record = partial(record_load, store, checkpoint=recipe.fields["checkpoint"])
                usage = drain(
                    flow,
                    what,
                    writer,
                    start,
                    log,
                    record,
                    [CpuAffinity(config.engine.num_threads)] if machines.device == "cpu" else [],
                    output=store.uri,
                    show_progress=show_progress,
                )
                usage = replace(usage, deployment=str(machines))
        report = _report(what, writer, store, usage)
        if what.num_todo:
            ids = {"run_id": run_id, "recipe_sha256": recipe.sha256}
            write_json(store, "_report.json", {**report.as_json(), **ids})
    return report


def _flow(
    config: PipelineConfig, machines: Deployment, source: Source, media: MediaAccess, what: Plan
) -> Flow:
    resources = ray.cluster_resources()
    sizing = choose_sizing(
        config,
        machines,
        num_rows=what.num_todo,
        num_cpus=resources.get("CPU", 1),
        store_bytes=int(resources.get("object_store_memory", 1 << 30)),
    )
    return Flow(
        source=source,
        checkpoint=config.checkpoint,
        instructions=config.instructions,
        open_media=media.open,
        sampling=config.sampling,
        sizing=sizing,
        keep_order=config.keep_order,
    )


def _gpus_of_nodes() -> list[int]:
    return [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]


@contextmanager
def _as_run_error(writer: PartWriter, store: Store) -> Iterator[None]:
    """Say in one line why a run stopped; the whole story goes to a file."""
    store.delete(_STORY)
    try:
        yield
    except _FAILURES as error:
        story = traceback.format_exc()
        try:
            store.write(_STORY, story.encode())
            where = f"{store.uri}/{_STORY}"
        except OSError:  # such as a full disk
            print(story, file=sys.stderr)  # noqa: T201
            where = "above"
        raise RunError(
            f"{_reason(error)} -- {writer.num_rows} rows of this run are committed; the same "
            f"command continues. Details: {where}"
        ) from error


def _reason(error: BaseException) -> str:
    """The message of what was raised first, without Ray's wrapping."""
    while isinstance(error, RayTaskError | UserCodeException):
        cause = error.cause if isinstance(error, RayTaskError) else error.__cause__
        if cause is None:
            break
        error = cause
    message = " ".join(str(error).split())
    if not isinstance(error, GroupError | ValueError | OSError):
        message = f"{type(error).__name__}: {message}"
    return message if len(message) <= 1000 else f"{message[:997]}..."


def _report(what: Plan, writer: PartWriter, store: Store, usage: Usage) -> Report:
    """Count what came out, in two ways.

    Raises:
        RunError: rows are missing, or there are too many.
    """
    num_out = what.num_done + writer.num_rows
    output = OutputCounts(*ledger.count_results(store, ledger.committed_parts(store)))
    if num_out != what.num_rows or output.num_rows != writer.num_rows_of_output:
        raise RunError(
            f"{what.num_rows} rows in, {num_out} rows out ({output.num_rows} in the parts); run "
            "the same command again, and if this stays, the input changed meanwhile"
        )
    return Report(
        rows_in=what.num_rows,
        rows_done_before=what.num_done,
        rows_written=writer.num_rows,
        statuses=dict(writer.statuses),
        error_codes=dict(writer.error_codes),
        num_prompt_tokens=writer.num_prompt_tokens,
        num_generated_tokens=writer.num_generated_tokens,
        num_bytes_written=writer.num_bytes,
        usage=usage,
        output=output,
    )
