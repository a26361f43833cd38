"""What every captioning job does with its command line: parse, run, one line for what went wrong.

Only the standard library is imported until the arguments are known to be good.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.options import Parser

_ROOT = Path(__file__).resolve().parents[1]
_INTERRUPTED = "interrupted; what is committed stays, and the same command continues"


def run_command(make_parser: Callable[[], "Parser"], arguments: Sequence[str] | None) -> int:
    """Run the job of a parser; the exit code.

    Args:
        make_parser: a new parser with the options that `jobs.settings.pipeline_config` reads.
        arguments: of the command line; None means those of this process.
    """
    from jobs import run_file

    prog = make_parser().prog
    try:
        options = run_file.parse(make_parser, sys.argv[1:] if arguments is None else arguments)
        from pipeline.run import RunError
    except ModuleNotFoundError as error:
        return _fail(
            prog,
            2,
            f"{error}, for {sys.executable}; activate the environment (`make setup` makes it: "
            f". {_ROOT}/.venv/bin/activate) or install with `pip install {_ROOT}`",
        )
    try:
        print(_run(options))
    except ValueError as error:
        return _fail(prog, 2, error)
    except (RunError, OSError) as error:
        return _fail(prog, 1, error)
    except KeyboardInterrupt:
        return _fail(prog, 130, _INTERRUPTED)
    except SystemExit:  # of `connect`, on Ctrl-C or SIGTERM
        print(f"{prog}: {_INTERRUPTED}", file=sys.stderr)
        raise
    return 0


def _run(options: argparse.Namespace) -> object:
    """Run with these arguments; the report."""
    from jobs.cluster import connect
    from jobs.settings import pipeline_config
    from pipeline.run import run

    return run(pipeline_config(options), connect=connect)


def _fail(prog: str, code: int, reason: object) -> int:
    print(f"{prog}: error: {reason}", file=sys.stderr)
    return code
