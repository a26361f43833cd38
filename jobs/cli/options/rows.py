"""Options for the input, the output and the checkpoint, and for columns and rows."""

import argparse

from jobs.cli.options.parser import add_options
from jobs.cli.options.values import parse_names, positive, positive_or, shard

_REQUIRED = """
--input PARQUET: Parquet files: one file, a directory, or a quoted pattern, as a path or a URI such
    as s3://bucket/clips
--output DIR: directory for the results, created if needed, or a URI such as s3://bucket/captions;
    only the driver writes to it
--model MODEL: checkpoint: a directory, a Hugging Face id such as moonshotai/Kimi-VL-A3B-Instruct,
    or `demo` for the small one of this repository
"""
_COLUMNS = """
--MEDIA-column NAME: column with the media: paths or URIs (string), the files themselves (binary),
    struct<bytes, path>, or a list of one of these; relative paths start at the folder of the input
--id-column NAME: column of unique ids; default: <file>#<row>
--make-ids-unique: accept ids that are null or repeated: a row without an id is named <file>#<row>,
    and a repeated id becomes <id>@<file>#<row>
--prompt-column NAME: column of prompts; null: --prompt
"""
_SPAN = """
--start-column NAME: column with the start of the span, in seconds
--end-column NAME: column with the end of the span, in seconds
"""
_ROWS = """
--columns A,B: columns of the input to copy to the output; default: all but media bytes; a name
    with a comma stands in double quotes: 'A,"B, C"'
--keep-media: copy media bytes to the output, if any
--allow-uri PREFIX: let rows name media below this URI, such as s3://bucket/clips; may be repeated
--allow-folder DIR: let rows name files below this folder, besides those below the folder of the
    input; may be repeated
--limit N: process only the first N rows, of a shard with --shard
--shard I/N: process only shard I of N, which are equal parts of the rows; its results go to the
    folder shard-I-of-N of the output; start a job for each I from 1 to N
--rows-per-part N: most rows of an output file
--max-part-age S: longest time that a finished row waits until its output file is written, in
    seconds
--keep-order: write rows in the order of the input; a slow row then delays the rows after it
--rows-per-batch N: rows that Ray passes between stages as one batch, which waits for its slowest
    row; default: auto, which is up to 8 rows if the table holds their media and these have at most
    1 MiB together, else 1 row for one copy of the model and up to 8 for many
"""


def add_required(group: argparse._ArgumentGroup) -> None:
    """Add the input, the output and the model."""
    flags = ("--input", "--output", "--model")
    add_options(group, _REQUIRED, {flag: {"required": True} for flag in flags})


def add_data(group: argparse._ArgumentGroup, media: str) -> None:
    """Add the options for columns and rows of the input, and for output files.

    `media` names what the rows hold, and the column that holds it.
    """
    column = {f"--{media}-column": {"dest": "video_column", "default": media}}
    add_options(group, _COLUMNS.replace("MEDIA", media), column)
    if media != "document":
        add_options(group, _SPAN, {})
    add_options(
        group,
        _ROWS,
        {
            "--columns": {"type": parse_names},
            "--allow-uri": {"action": "append", "default": []},
            "--allow-folder": {"action": "append", "default": []},
            "--limit": {"type": positive},
            "--shard": {"type": shard},
            "--rows-per-part": {"type": positive, "default": 10_000},
            "--max-part-age": {"type": float, "default": 300.0},
            "--rows-per-batch": {"type": positive_or("auto")},
        },
    )
