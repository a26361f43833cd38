"""Options for an existing output, for how to run, and for a file of options."""

import argparse

from jobs.cli.options.values import share


def add_run(group: argparse._ArgumentGroup) -> None:
    """Add the options for an existing output, for how to run, and for a file of options."""
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="print what the run would do (new, done and failed rows, changes of the recipe, part "
        "files, machines); start nothing and write nothing",
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
        help="process rows with status error again and replace them; with codes, such as "
        "media_missing,media_unreadable, only these errors",
    )
    group.add_argument(
        "--new-recipe",
        action="store_true",
        help="if the output was made with other settings, move its rows to its folder _old-<time>/ "
        "and start again",
    )
    group.add_argument(
        "--config",
        metavar="YAML",
        help="read options from a file (path or URI) whose keys are their names; the command line "
        "takes precedence; _run.yaml in an output directory repeats the run that wrote it",
    )
