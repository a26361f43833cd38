#!/usr/bin/env python
"""Try prompts on a few rows before a job is started: answers in seconds, in one process.

It runs as `python -m jobs.try_prompt` and as a file; `--help` is the manual page.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file, Python puts jobs/ on the path in place of the root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs.cli import config_file
from jobs.cli.options import Parser, add_options, positive

if TYPE_CHECKING:
    from jobs.tryout.session import TrySession
    from pipeline.config import PipelineConfig

_PROG = "try_prompt"
_DEFAULTS = {"output": "captions", "model": "demo"}  # the output is only printed
_MEDIA_OF = {  # the module of each job, and the name of its media column by default
    "caption_videos": "video",
    "describe_images": "image",
    "parse_documents": "document",
}

_DESCRIPTION = """\
Try prompts on a few rows of the input, with the options of the job that would answer all of them.
The rows are drawn from the whole input, each time the same ones. One process answers, without Ray,
and nothing is written. At a terminal it asks for the next prompt, and keeps the model and the
frames. At the end it prints the command of the whole job. The options below are those of %s."""

_EPILOG = """\
examples:
  python -m jobs.try_prompt --input clips.parquet --model demo --prompt 'What happens?'
  python -m jobs.try_prompt --input clips.parquet --model demo --prompts prompts.yaml --rows 5
  python -m jobs.try_prompt --input papers.parquet --model demo --once

exit codes:
  0    all rows are answered, maybe with an error
  1    the engine stopped
  2    refused: arguments, input or checkpoint
  130  Ctrl-C
"""
_OPTIONS = """
--job: job whose options and defaults are used; default: the one for the column of the input that is
    named `video`, `image` or `document`
--rows N: rows to answer
--once: answer one prompt and end, as where there is no terminal
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer prompts until the user has enough, and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    job = _job_of(arguments)
    make = partial(make_parser, job)
    options = config_file.parse(make, arguments)
    from parallel.groups.errors import GroupError

    try:
        _try(job, options, arguments)
    except ValueError as error:
        return _fail(2, error)
    except (GroupError, OSError) as error:
        return _fail(1, error)
    except KeyboardInterrupt:
        return _fail(130, "interrupted; nothing was written")
    return 0


def make_parser(job: str = "caption_videos") -> Parser:
    """Make the parser of a job, in which `--output` and `--model` need not be given."""
    parser: Parser = import_module(f"jobs.{job}").make_parser()
    parser.prog, parser.description, parser.epilog = _PROG, _DESCRIPTION % job, _EPILOG
    parser.usage = "%(prog)s --input PARQUET [--prompt TEXT] [option ...]"
    for action in parser._actions:
        if action.dest in _DEFAULTS:
            action.required, action.default = False, _DEFAULTS[action.dest]
    add_options(
        parser.add_argument_group("what to try"),
        _OPTIONS,
        {"--job": {"choices": tuple(_MEDIA_OF)}, "--rows": {"type": positive, "default": 3}},
    )
    return parser


def _job_of(arguments: Sequence[str]) -> str:
    """Find the job whose options the others are: by --job, a media option, or the input."""
    parser = Parser(prog=_PROG, add_help=False, allow_abbrev=False)
    parser.add_argument("--job", choices=tuple(_MEDIA_OF))
    parser.add_argument("--input")
    for media in _MEDIA_OF.values():
        parser.add_argument(f"--{media}-column", dest=media)
    given = parser.parse_known_args(arguments)[0]
    if given.job:
        return given.job
    for job, media in _MEDIA_OF.items():
        if getattr(given, media):
            return job
    columns = _columns(given.input) if given.input else ()
    return next((job for job, media in _MEDIA_OF.items() if media in columns), "caption_videos")


def _columns(uri: str) -> Sequence[str]:
    """Return the columns of the first file of an input; none where it cannot be read."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_schema

    from pipeline.input.listing import list_files

    try:
        listing = list_files(uri)
        return read_schema(listing.files[0][1], filesystem=listing.filesystem).names
    except (ValueError, OSError, ArrowException):
        return ()  # the job's own check says what is wrong


def _try(job: str, options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Answer the prompt of the options, then those that the user types.

    Raises:
        ValueError: a job would refuse an argument, the input or the checkpoint.
        GroupError: the engine stopped.
    """
    from jobs.cli.pipeline_config import pipeline_config
    from jobs.tryout.session import open_session
    from pipeline.preflight import open_checkpoint, open_input

    config = pipeline_config(options)
    if options.model == _DEFAULTS["model"]:
        print("the bundled demo model answers; --model chooses another")
    source = open_input(config)
    if source.left_out:
        print(f"left out of the input: {source.left_out}")
    open_checkpoint(config)
    with open_session(config, source, options.rows) as session:
        _show(session, config, None)
        for prompt in _typed() if not options.once and sys.stdin.isatty() else ():
            if not prompt and options.prompts is None:
                break
            if not prompt:  # the file may have changed
                config = pipeline_config(options)
            else:
                options.prompt, options.prompts, options.prompt_column = prompt, None, None
            _show(session, config, prompt or None)
    command = _command(job, options, arguments)
    print(f"\nthe job for all {source.num_rows:,} rows:\n  {command}")


def _show(session: "TrySession", config: "PipelineConfig", prompt: str | None) -> None:
    """Print what the prompt or the prompts of the configuration give."""
    from jobs.tryout.show import answer_lines

    width = min(100, shutil.get_terminal_size().columns)
    named = [] if prompt else [each.name for each in config.instructions.named_prompts]
    if not named and (prompt or config.columns.prompt is None):
        print(f"\nprompt: {prompt or config.instructions.prompt}", flush=True)
    for answer in session.ask(config, prompt):
        print("", *answer_lines(answer, named, width), sep="\n", flush=True)


def _typed() -> Iterator[str]:
    """Yield the prompts that the user types, until Ctrl-D."""
    with suppress(ImportError):
        import readline  # noqa: F401, gives `input` arrow keys and a history
    while True:
        try:
            yield input("\nnext prompt (Enter ends): ").strip()
        except EOFError:
            return


def _command(job: str, options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """Return the command of the job with the options that were given, and the last prompt."""
    make_job = import_module(f"jobs.{job}").make_parser
    changes: dict[str, object] = {"output": options.output, "model": options.model}
    for name in ("prompt", "prompts", "prompt-column"):  # the user may have typed another prompt
        key = name.replace("-", "_")
        value = getattr(options, key)
        changes[name] = None if value == make_job().get_default(key) else value
    return config_file.command_of(make_job, partial(make_parser, job), arguments, changes)


def _fail(code: int, reason: object) -> int:
    print(f"{_PROG}: error: {reason}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
