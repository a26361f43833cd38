"""One run: `PipelineConfig` in, `Report` out.

What can be refused is refused with a `ValueError` before Ray is touched: arguments, checkpoint,
input, output. From then on a failure is a `RunError`, and what is committed stays.
"""

import math
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError, RayTaskError, UserCodeException
from tqdm import tqdm

from model.constraint import Grammars
from model.processor import Processor
from parallel.client import Groups
from parallel.group import GroupError
from pipeline import ledger
from pipeline.config import PipelineConfig, recipe_of
from pipeline.fetch import MediaAccess
from pipeline.flow import Flow
from pipeline.generate import extra_fields
from pipeline.machines import (
    EngineFactory,
    Machines,
    check_ranks,
    choose_machines,
    load_engine,
    rank_numbers,
    start_groups,
)
from pipeline.questions import question_fields
from pipeline.recipe import claim_output, write_json
from pipeline.report import Report
from pipeline.sink import Committer
from pipeline.source import Plan, Source, open_source, plan

_MAX_GENERATING_BYTES = 1 << 30
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
        show_progress: draw a bar on standard error.

    Raises:
        ValueError: refused; nothing was done.
        RunError: stopped half-way.
    """
    num_experts = _check_checkpoint(config)
    source = open_source(
        config.input,
        config.columns,
        carry=config.carry,
        keep_media=config.keep_media,
        extra=[*extra_fields(config.sampling), *question_fields(config.instructions.questions)],
    )
    media = MediaAccess(
        base=source.folder,
        allowed_prefixes=config.allowed_uris,
        allowed_folders=config.allowed_folders,
        max_bytes=config.instructions.limits.max_bytes,
    )
    recipe = recipe_of(config, source.layout)
    schema = source.layout.output.with_metadata(recipe.parquet_metadata)
    output = config.output_dir
    with ledger.lock_output(output):
        parts = ledger.committed_parts(output)
        claim_output(output, recipe, has_parts=bool(parts))
        if config.run_yaml is not None:
            (output / "_run.yaml").write_text(config.run_yaml, encoding="utf-8")
        committed = ledger.committed_ids(parts, schema)
        what = plan(source, committed, limit=config.limit)
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        staging = ledger.open_staging(output, run_id)
        committer = Committer(
            output,
            staging,
            run_id,
            schema,
            committed,
            rows_per_part=config.rows_per_part,
            max_part_age_s=config.max_part_age_s,
        )
        seen: dict[str, Any] = {}  # fields of the report
        try:
            if what.num_todo:
                with connect(), _as_run_error(committer, output):
                    num_gpus = int(ray.cluster_resources().get("GPU", 0))
                    chosen = choose_machines(config, num_gpus, num_experts)
                    if show_progress:
                        tqdm.write(str(chosen), file=sys.stderr)
                    flow = _flow(config, chosen, source, media, what, schema, staging)
                    start = partial(start_groups, config, chosen, engine_factory)
                    seen = _drain(flow, what, committer, start, show_progress=show_progress)
                    seen["machines"] = str(chosen)
        finally:
            ledger.close_staging(output)
        report = replace(_report(what, committer, output), **seen)
        if what.num_todo:
            ids = {"run_id": run_id, "recipe_sha256": recipe.sha256}
            write_json(output / "_report.json", {**asdict(report), **ids})
    return report


def _check_checkpoint(config: PipelineConfig) -> int:
    """Refuse what cannot work; the number of the checkpoint's routed experts."""
    from model.weights import check_checkpoint  # torch

    num_experts = check_checkpoint(config.checkpoint).text.n_routed_experts
    check_ranks(config, num_experts)
    processor = Processor.from_checkpoint(config.checkpoint)
    questions = config.instructions.questions
    for sampling in (config.sampling, *(question.sampling for question in questions)):
        if sampling.schema is not None:
            grammars = Grammars(processor.tokenizer, processor.config.stop_token_ids)
            grammars.start(sampling.schema, thinking=sampling.thinking)
    return num_experts


def _flow(
    config: PipelineConfig,
    machines: Machines,
    source: Source,
    media: MediaAccess,
    what: Plan,
    schema: pa.Schema,
    staging: Path,
) -> Flow:
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    batch_rows = config.batch_rows
    # Twice what the engines can run, so that they never wait for the client.
    num_engines = machines.num_groups * machines.num_ranks
    wanted = math.ceil(2 * num_engines * config.engine.max_batch_size / batch_rows)
    affordable = _MAX_GENERATING_BYTES // (batch_rows * config.row_bytes)
    return Flow(
        source=source,
        checkpoint=config.checkpoint,
        instructions=config.instructions,
        open_media=media.open,
        sampling=config.sampling,
        output_schema=schema,
        staging=staging,
        batch_rows=batch_rows,
        batches_in_flight=max(2, min(wanted, affordable)),
        num_preparers=max(1, min(num_cpus - 1, math.ceil(what.num_todo / batch_rows))),
    )


def _drain(
    flow: Flow,
    what: Plan,
    committer: Committer,
    start: Callable[[], Groups],
    *,
    show_progress: bool,
) -> dict[str, Any]:
    """Start the groups, let the rows flow and commit them; what the report says of that."""
    bar = tqdm(
        total=what.num_rows,
        initial=what.num_done,
        unit="row",
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
        disable=not show_progress,
    )
    with bar, closing(start()) as groups:
        started = latest = time.monotonic()
        num_tokens = num_errors = 0
        longest_pause_s = 0.0
        try:
            for staged in flow.staged(what.pieces, groups):
                earlier, latest = latest, time.monotonic()
                longest_pause_s = max(longest_pause_s, latest - earlier)
                for line in staged.to_pylist():
                    committer.add(line["path"], line["rows"])
                    num_tokens += line["tokens"]
                    num_errors += line["errors"]
                    tokens_per_s = num_tokens / (time.monotonic() - started)
                    bar.set_postfix_str(
                        f"{tokens_per_s:.1f} tokens/s, {num_errors} errors", refresh=False
                    )
                    bar.update(line["rows"])
        finally:
            committer.commit()  # also what was done before a failure or Ctrl-C
        status = groups.status()
        return {
            "seconds": time.monotonic() - started,
            "longest_pause_s": longest_pause_s,
            "group_failures": status.failures,
            "ranks": rank_numbers(status),
        }


@contextmanager
def _as_run_error(committer: Committer, output: Path) -> Iterator[None]:
    """Say in one line why a run stopped; the whole story goes to a file."""
    story = output / "_error.txt"
    story.unlink(missing_ok=True)
    try:
        yield
    except _FAILURES as error:
        story.write_text(traceback.format_exc(), encoding="utf-8")
        raise RunError(
            f"{_reason(error)} -- {committer.num_rows} rows of this run are committed; the same "
            f"command continues. Details: {story}"
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


def _report(what: Plan, committer: Committer, output: Path) -> Report:
    """Count what came out, in two ways.

    Raises:
        RunError: rows are missing, or there are too many.
    """
    num_out = what.num_done + committer.num_rows
    on_disk = sum(pq.read_metadata(part).num_rows for part in ledger.committed_parts(output))
    if num_out != what.num_rows or on_disk != committer.num_rows_of_output:
        raise RunError(
            f"{what.num_rows} rows in, {num_out} rows out ({on_disk} in the parts); run the same "
            "command again, and if this stays, the input changed meanwhile"
        )
    return Report(
        rows_in=what.num_rows,
        rows_done_before=what.num_done,
        rows_written=committer.num_rows,
        statuses=dict(committer.statuses),
        error_codes=dict(committer.error_codes),
        num_prompt_tokens=committer.num_prompt_tokens,
        num_generated_tokens=committer.num_generated_tokens,
    )
