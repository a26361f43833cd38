"""Options for the input, the output and the checkpoint, and for columns and rows."""

import argparse

from jobs.cli.options.values import parse_names, positive, positive_or


def add_required(group: argparse._ArgumentGroup) -> None:
    """Add the input, the output and the model."""
    group.add_argument(
        "--input",
        required=True,
        metavar="PARQUET",
        help="Parquet files: one file, a directory, or a quoted pattern, as a path or a URI such "
        "as s3://bucket/clips",
    )
    group.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="directory for the results, created if needed, or a URI such as "
        "s3://bucket/captions; only the driver writes to it",
    )
    group.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="checkpoint: a directory, a Hugging Face id such as moonshotai/Kimi-VL-A3B-Instruct, "
        "or `demo` for the small one of this repository",
    )


def add_data(group: argparse._ArgumentGroup, media: str) -> None:
    """Add the options for columns and rows of the input, and for output files.

    Args:
        group: gets the options.
        media: names what the rows hold, and the column that holds it.
    """
    group.add_argument(
        f"--{media}-column",
        dest="video_column",
        default=media,
        metavar="NAME",
        help="column with the media: paths or URIs (string), the files themselves (binary), "
        "struct<bytes, path>, or a list of one of these; relative paths start at the folder of "
        "the input",
    )
    group.add_argument(
        "--id-column", metavar="NAME", help="column of unique ids; default: <file>#<row>"
    )
    group.add_argument(
        "--make-ids-unique",
        action="store_true",
        help="accept ids that are null or repeated: a row without an id is named <file>#<row>, "
        "and a repeated id becomes <id>@<file>#<row>",
    )
    group.add_argument("--prompt-column", metavar="NAME", help="column of prompts; null: --prompt")
    if media != "document":
        group.add_argument(
            "--start-column", metavar="NAME", help="column with the start of the span, in seconds"
        )
        group.add_argument(
            "--end-column", metavar="NAME", help="column with the end of the span, in seconds"
        )
    group.add_argument(
        "--columns",
        type=parse_names,
        metavar="A,B",
        help="columns of the input to copy to the output; default: all but media bytes",
    )
    group.add_argument(
        "--keep-media", action="store_true", help="copy media bytes to the output, if any"
    )
    group.add_argument(
        "--allow-uri",
        action="append",
        default=[],
        metavar="PREFIX",
        help="let rows name media below this URI, such as s3://bucket/clips; may be repeated",
    )
    group.add_argument(
        "--allow-folder",
        action="append",
        default=[],
        metavar="DIR",
        help="let rows name files below this folder, besides those below the folder of the input; "
        "may be repeated",
    )
    group.add_argument("--limit", type=positive, metavar="N", help="process only the first N rows")
    group.add_argument(
        "--rows-per-part",
        type=positive,
        default=10_000,
        metavar="N",
        help="most rows of an output file",
    )
    group.add_argument(
        "--max-part-age",
        type=float,
        default=300.0,
        metavar="S",
        help="longest time that a finished row waits until its output file is written, in seconds",
    )
    group.add_argument(
        "--keep-order",
        action="store_true",
        help="write rows in the order of the input; a slow row then delays the rows after it",
    )
    group.add_argument(
        "--rows-per-batch",
        type=positive_or("auto"),
        metavar="N",
        help="rows that Ray passes between stages as one batch, which waits for its slowest row; "
        "default: auto, which is up to 8 rows if the table holds their media and these have at "
        "most 1 MiB together, else 1 row for one copy of the model and up to 8 for many",
    )
