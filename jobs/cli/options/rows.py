"""The input, the output and the checkpoint; columns and rows."""

import argparse

from jobs.cli.options.values import parse_names, positive, positive_or


def add_required(group: argparse._ArgumentGroup) -> None:
    """Input, output and model."""
    group.add_argument(
        "--input",
        required=True,
        metavar="PARQUET",
        help="a Parquet file, a directory of them, or a quoted pattern; a path or a URI such as "
        "s3://bucket/clips",
    )
    group.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="directory of the results, made if need be, or a URI such as s3://bucket/captions; "
        "only the driver writes there",
    )
    group.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a checkpoint directory, a Hugging Face id such as moonshotai/Kimi-VL-A3B-Instruct, "
        "or `demo`, the small one of this repository",
    )


def add_data(group: argparse._ArgumentGroup, media: str) -> None:
    """The columns and rows of the input, where `media` is what they hold; how output is cut."""
    group.add_argument(
        f"--{media}-column",
        dest="video_column",
        default=media,
        metavar="NAME",
        help="paths or URIs (string), the files themselves (binary), struct<bytes, path>, or a "
        "list of one of these; relative paths start at the input's folder",
    )
    group.add_argument("--id-column", metavar="NAME", help="unique ids; default: <file>#<row>")
    group.add_argument(
        "--make-ids-unique",
        action="store_true",
        help="name a row whose id is null <file>#<row>, and one whose id stands there already "
        "<id>@<file>#<row>, instead of refusing the input",
    )
    group.add_argument("--prompt-column", metavar="NAME", help="a row's own prompt; null: --prompt")
    if media != "document":
        group.add_argument("--start-column", metavar="NAME", help="start of the span, in seconds")
        group.add_argument("--end-column", metavar="NAME", help="end of the span, in seconds")
    group.add_argument(
        "--columns",
        type=parse_names,
        metavar="A,B",
        help="columns of the input to write beside the results; default: all but media bytes",
    )
    group.add_argument(
        "--keep-media", action="store_true", help="write the media bytes too, where there are any"
    )
    group.add_argument(
        "--allow-uri",
        action="append",
        default=[],
        metavar="PREFIX",
        help="rows may name media below this, such as s3://bucket/clips; may be repeated",
    )
    group.add_argument(
        "--allow-folder",
        action="append",
        default=[],
        metavar="DIR",
        help="rows may name files below this, beside those below the input's folder; may be "
        "repeated",
    )
    group.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    group.add_argument(
        "--rows-per-part", type=positive, default=10_000, metavar="N", help="of each output file"
    )
    group.add_argument(
        "--max-part-age",
        type=float,
        default=300.0,
        metavar="S",
        help="seconds that a finished row waits for its output file at most",
    )
    group.add_argument(
        "--keep-order",
        action="store_true",
        help="write rows in the order of the input; a slow row then holds back those behind it",
    )
    group.add_argument(
        "--rows-per-batch",
        type=positive_or("auto"),
        metavar="N",
        help="rows that travel together, and wait for the slowest of them; default: auto, up to 8 "
        "whose media in the table have 1 MiB together, and of others 1 for one copy of the model "
        "and up to 8 for many",
    )
