"""What to do with an output that is there, and the file that options can stand in."""

import argparse

from jobs.cli.options.values import share


def add_run(group: argparse._ArgumentGroup) -> None:
    """What to do with an output that is there, and the file that options can stand in."""
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print what the run would do (rows that are new, done and failed, what changed in "
        "the recipe, parts, machines), start nothing and write nothing",
    )
    group.add_argument(
        "--inline",
        action="store_true",
        help="run everything in this process, without Ray, with one copy of the model: for small "
        "inputs, debuggers and tests; resumes and counts as any run does",
    )
    group.add_argument(
        "--fail-if-errors",
        type=share,
        metavar="SHARE",
        help="exit with status 3 if more than this share (0 to 1) of the rows that this run wrote "
        "have status error; 0 allows none",
    )
    group.add_argument(
        "--retry-failed",
        nargs="?",
        const="all",
        metavar="CODES",
        help="try rows with status error again and replace them; with codes, such as "
        "media_missing,media_unreadable, only those",
    )
    group.add_argument(
        "--new-recipe",
        action="store_true",
        help="if the output was made with other settings, move its rows to _old-<time>/ in it and "
        "begin anew",
    )
    group.add_argument(
        "--config",
        metavar="YAML",
        help="options from a file (path or URI), with their names as keys; the command line wins. "
        "_run.yaml in an output directory repeats the run that wrote it",
    )
