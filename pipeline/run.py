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

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError, RayTaskError, UserCodeException
from tqdm import tqdm

from model.constraint import Grammars
from model.engine_config import EngineConfig
from model.processor import Processor
from model.sequence import SamplingParams
from parallel.client import Groups
from parallel.group import GroupError, GroupSpec
from parallel.worker import Engine
from pipeline import ledger
from pipeline.config import PipelineConfig, recipe_of
from pipeline.fetch import MediaAccess
from pipeline.flow import Flow
from pipeline.generate import extra_fields
from pipeline.recipe import claim_output, write_json
from pipeline.report import Report
from pipeline.sink import Committer
from pipeline.source import Plan, Source, open_source, plan

EngineFactory = Callable[[Path, EngineConfig], Engine]

_MAX_GENERATING_BYTES = 1 << 30
_FAILURES = (RayError, ExecutionTimeoutError, RuntimeError, ValueError, OSError, pa.ArrowException)


class RunError(RuntimeError):
    """The run stopped before its end; the same command continues it."""


def load_engine(checkpoint: Path, config: EngineConfig) -> Engine:
    """The engine of a checkpoint, in the process that will use it."""
    from model.engine import Engine as KimiVLEngine  # torch, which only ranks need

    return KimiVLEngine.from_checkpoint(checkpoint, config)


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
    _check_checkpoint(config.checkpoint, config.sampling)
    source = open_source(
        config.input,
        config.columns,
        carry=config.carry,
        keep_media=config.keep_media,
        extra=extra_fields(config.sampling),
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
        seconds = 0.0
        try:
            if what.num_todo:
                with connect(), _as_run_error(committer, output):
                    flow = _flow(config, source, media, what, schema, staging)
                    start_groups = partial(_start_groups, config, engine_factory)
                    seconds = _drain(
                        flow, what, committer, start_groups, show_progress=show_progress
                    )
        finally:
            ledger.close_staging(output)
        report = _report(what, committer, output, seconds)
        if what.num_todo:
            ids = {"run_id": run_id, "recipe_sha256": recipe.sha256}
            write_json(output / "_report.json", {**asdict(report), **ids})
    return report


def _check_checkpoint(directory: Path, sampling: SamplingParams) -> None:
    from model.weights import check_checkpoint  # torch

    check_checkpoint(directory)
    processor = Processor.from_checkpoint(directory)
    if sampling.schema is not None:
        grammars = Grammars(processor.tokenizer, processor.config.stop_token_ids)
        grammars.start(sampling.schema, thinking=sampling.thinking)


def _flow(
    config: PipelineConfig,
    source: Source,
    media: MediaAccess,
    what: Plan,
    schema: pa.Schema,
    staging: Path,
) -> Flow:
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    batch_rows = config.batch_rows
    # Twice what the engines can run, so that they never wait for the client.
    wanted = math.ceil(2 * config.engine.max_batch_size / batch_rows)
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


def _start_groups(config: PipelineConfig, engine_factory: EngineFactory) -> Groups:
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    device = config.device
    if device == "auto":
        device = "cuda" if num_gpus else "cpu"
    engine = replace(config.engine, device=device)
    spec = GroupSpec(
        engine_factory=partial(engine_factory, config.checkpoint, engine),
        num_cpus_per_rank=0.25,  # of Ray's accounts; torch uses the engine's `num_threads`
        num_gpus_per_rank=1.0 if device == "cuda" else 0.0,
    )
    return Groups.start(
        spec,
        num_groups=config.num_groups or (max(1, num_gpus) if device == "cuda" else 1),
        max_group_failures=config.max_group_failures,
    )


def _drain(
    flow: Flow,
    what: Plan,
    committer: Committer,
    start_groups: Callable[[], Groups],
    *,
    show_progress: bool,
) -> float:
    """Start the groups, let the rows flow and commit them; the seconds that the rows took."""
    bar = tqdm(
        total=what.num_rows,
        initial=what.num_done,
        unit="row",
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,
        disable=not show_progress,
    )
    with bar, closing(start_groups()) as groups:
        started = time.monotonic()
        num_tokens = num_errors = 0
        try:
            for staged in flow.staged(what.pieces, groups):
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
        return time.monotonic() - started


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


def _report(what: Plan, committer: Committer, output: Path, seconds: float) -> Report:
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
        seconds=seconds,
    )
