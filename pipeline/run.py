"""One run: `PipelineConfig` in, `Report` out.

What can be refused is refused with a `ValueError` before anything is started: arguments,
checkpoint, input, output. From then on a failure is a `RunError`, and what is committed stays.
"""

import asyncio
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pyarrow as pa
from ray.exceptions import RayError

from parallel.groups.errors import GroupError
from pipeline.cluster.expert_load import LoadPicture
from pipeline.cluster.groups import EngineFactory, load_engine
from pipeline.config import PipelineConfig
from pipeline.driver import Backend, drive
from pipeline.monitor.announce import announce, announced_if_slow
from pipeline.monitor.report import OutputCounts, Report, Usage
from pipeline.output import ledger
from pipeline.output.lock import lock_output
from pipeline.output.recipe import write_json
from pipeline.output.shards import check_place, shard_store
from pipeline.output.store import Store
from pipeline.output.writer import PartWriter
from pipeline.run_plan import RunPlan, check, plan_run
from pipeline.stages.inline import InlineBackend
from pipeline.stages.ray_backend import RayBackend
from pipeline.stages.streams import raised_first

_STORY = "_error.txt"
_CHECKING = "checking the checkpoint and the input"
_FAILURES = (RayError, RuntimeError, ValueError, OSError, pa.ArrowException)


class RunError(RuntimeError):
    """The run stopped before its end; the same command continues it."""


def run(
    config: PipelineConfig,
    *,
    connect: Callable[[], AbstractContextManager[None]],
    inline: bool = False,
    engine_factory: EngineFactory = load_engine,
    show_progress: bool = True,
) -> Report:
    """Caption every row of the input that the output does not hold yet.

    check --> lock the output --> plan --> connect --> groups start --> rows flow --> report

    `connect` connects this process to Ray, unless the run is `inline`, which runs everything in
    this process, without Ray. It is entered while rows flow, and not at all when no row is left to
    do. `show_progress` shows on standard error how it goes.

    Raises:
        ValueError: refused; nothing was done.
        RunError: stopped half-way.
    """
    with announced_if_slow(_CHECKING) if show_progress else nullcontext():
        checked = check(config)
    if show_progress and checked.source.left_out:
        announce(f"left out of the input: {checked.source.left_out}")
    check_place(config.output, config.shard)
    store = shard_store(config.output, config.shard)
    with lock_output(store) as lock:
        plan = plan_run(config, checked, store)
        writer = plan.open_writer(lock.check)
        usage, picture = Usage(), LoadPicture()
        if plan.remark is not None and show_progress:
            announce(plan.remark)
        if plan.rows.num_todo:
            if show_progress:
                rows, where = plan.rows, "here" if inline else "or joining Ray"
                of = "" if config.shard is None else f" of shard {config.shard}"
                announce(f"{rows.num_todo:,} of {rows.num_rows:,} rows{of} to do; starting {where}")
            with (
                connect(),
                _as_run_error(writer, store),
                _backend(plan, engine_factory, inline=inline) as backend,
            ):
                if show_progress:
                    announce(str(backend.deployment))
                usage = drive(plan, writer, backend, picture, show_progress=show_progress)
            with _as_run_error(writer, store):
                picture.finish()  # drawn while groups and Ray ended
        report = _report(plan, writer, usage)
        if plan.rows.num_todo:
            shard = None if config.shard is None else str(config.shard)
            ids = {"shard": shard, "run_id": plan.run_id, "recipe_sha256": plan.recipe.sha256}
            write_json(store, "_report.json", {**report.as_json(), **ids})
    return report


@contextmanager
def _backend(plan: RunPlan, engine_factory: EngineFactory, *, inline: bool) -> Iterator[Backend]:
    if not inline:
        yield RayBackend(plan, engine_factory)
        return
    with asyncio.Runner() as runner:
        yield InlineBackend(plan, engine_factory, runner)


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
    error = raised_first(error)
    message = " ".join(str(error).split())
    if not isinstance(error, GroupError | ValueError | OSError):
        message = f"{type(error).__name__}: {message}"
    return message if len(message) <= 1000 else f"{message[:997]}..."


def _report(plan: RunPlan, writer: PartWriter, usage: Usage) -> Report:
    """Count what came out, in two ways.

    Raises:
        RunError: rows are missing, or there are too many.
    """
    rows = plan.rows
    num_out = rows.num_done + writer.num_rows
    output = OutputCounts(*ledger.count_results(plan.store, ledger.committed_parts(plan.store)))
    if num_out != rows.num_rows or output.num_rows != plan.index.num_rows:
        raise RunError(
            f"{rows.num_rows} rows in, {num_out} rows out ({output.num_rows} in the parts); run "
            "the same command again, and if this stays, the input changed meanwhile"
        )
    return Report(
        rows_in=rows.num_rows,
        rows_done_before=rows.num_done,
        rows_written=writer.num_rows,
        statuses=dict(writer.statuses),
        error_codes=dict(writer.error_codes),
        first_error=writer.first_error,
        num_prompt_tokens=writer.num_prompt_tokens,
        num_generated_tokens=writer.num_generated_tokens,
        num_bytes_written=writer.num_bytes,
        captions=writer.captions.summary(),
        usage=usage,
        output=output,
    )
