"""Conclude a sweep: its table, its charts, and the command line of the full job."""

import argparse
import shlex
from collections.abc import Callable, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.cli.config_file import as_arguments
from jobs.cli.options import Parser
from jobs.sweep.answers import collect
from jobs.sweep.charts import draw_sweep, draw_tasks
from jobs.sweep.grid import Cell
from jobs.sweep.names import ANSWER_TOKENS, MODES
from jobs.sweep.scores import Row, choose_cell, summarise
from jobs.sweep.work import Work
from pipeline.output.store import Store

# Options of the sweep or of its dataset, for which the full job has its own values.
_NOT_OF_THE_JOB = ("input", "output", "id-column", "video-column", "limit", "prompt")


def conclude(
    work: Work, store: Store, make_parser: Callable[[], Parser], options: argparse.Namespace
) -> str:
    """Score the answers of a finished sweep, write all results, and return the text to print.

    `make_parser` makes a parser of the full job; `options` and `store` are those of the sweep.
    """
    answers = collect(work, store.uri)
    file = pa.BufferOutputStream()
    pq.write_table(answers, file)
    store.write("answers.parquet", file.getvalue())
    rows, mode = answers.to_pylist(), options.score
    summary = summarise(rows, work.settings)
    best, cheapest = choose_cell(summary, mode)
    store.write("summary.csv", pd.DataFrame(summary).to_csv(index=False).encode())
    store.write("sweep.png", draw_sweep(summary, work.settings, mode, cheapest))
    store.write("tasks.png", draw_tasks(rows, mode))
    return "\n".join(
        [
            _table(summary),
            "",
            f"best, by {mode} score: {_cell_line(summary[best], mode)}",
            f"cheapest within one standard error: {_cell_line(summary[cheapest], mode)}",
            "the full job:",
            full_command(work.cells[cheapest], options, make_parser()),
        ]
    )


def _table(summary: Sequence[Row]) -> str:
    modes = [name for mode in MODES if mode in summary[0] for name in (mode, f"{mode}_se")]
    wanted = ["questions", "errors", "unparsed", *modes]
    wanted += ["mean_frames", "mean_visual_tokens", "mean_tokens"]
    rows = [{"cell": row["cell"][:60], **{name: row[name] for name in wanted}} for row in summary]
    return pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3f}")


def _cell_line(row: Row, mode: str) -> str:
    return (
        f"{row['cell']}: {row[mode]:.3f} +- {row[f'{mode}_se']:.3f}, "
        f"{row['mean_tokens']:.0f} tokens a question"
    )


def full_command(cell: Cell, options: argparse.Namespace, parser: Parser) -> str:
    """Return the command line that captions clips with the settings of a cell.

    Input and output are placeholders. Settings that suit questions only are left out: their
    prompt, and the limit on short answers. `options` are those of the sweep, and `parser` is that
    of the full job.
    """
    defaults = {action.option_strings[-1][2:]: action.default for action in parser._actions}
    values = {**yaml.safe_load(options.run_yaml), **cell.settings}
    if "fps" in cell.settings:
        values.pop("frames", None)
    if "frames" in cell.settings:
        values.pop("fps", None)
    kept = {
        name: value
        for name, value in values.items()
        if name in defaults and name not in _NOT_OF_THE_JOB and value != defaults[name]
    }
    if "max-tokens" not in cell.settings and cell.options.max_tokens == ANSWER_TOKENS:
        kept.pop("max-tokens", None)
    if "{" not in cell.options.prompt:
        kept["prompt"] = cell.options.prompt
    command = ["python", "-m", "jobs.caption_videos", "--input", "CLIPS.parquet"]
    return shlex.join([*command, "--output", "CAPTIONS", *as_arguments(parser, kept)])
