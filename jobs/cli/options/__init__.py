"""Options that jobs share, by group.

`jobs.cli.pipeline_config` makes a `PipelineConfig` of them. This package imports nothing slow, so
that a wrong argument is reported at once.
"""

from jobs.cli.options.answer import add_answer
from jobs.cli.options.limits import LIMITS, add_limits, media_limits
from jobs.cli.options.machine import add_machine, add_run
from jobs.cli.options.parser import Formatter, Parser, add_options
from jobs.cli.options.question import (
    MERGE_PROMPT,
    NO_FRAMES,
    NO_PAGES,
    add_frames,
    add_pages,
    add_question,
    add_windows,
)
from jobs.cli.options.rows import add_data, add_required
from jobs.cli.options.values import (
    count,
    names_among,
    parse_names,
    positive,
    positive_list,
    positive_or,
)

__all__ = [
    "EXIT_CODES",
    "LIMITS",
    "MERGE_PROMPT",
    "NO_PAGES",
    "Formatter",
    "Parser",
    "add_limits",
    "add_options",
    "count",
    "job_parser",
    "media_limits",
    "names_among",
    "parse_names",
    "positive",
    "positive_list",
    "positive_or",
]


EXIT_CODES = """
exit codes:
  0    every row is answered, maybe with an error
  1    the run stopped; committed rows stay, and the same command continues; or --check-shards found
       that not every row is there once
  2    refused: arguments, input, output or checkpoint
  3    --fail-if-errors: more rows than that are errors
  130  Ctrl-C (143 for SIGTERM); committed rows stay, and the same command continues
"""


def job_parser(prog: str, description: str, epilog: str, media: str = "video") -> Parser:
    """Make the parser of a job over rows of `media`, with all groups of options."""
    parser = Parser(
        prog=prog,
        usage="%(prog)s --input PARQUET --output DIR --model MODEL [option ...]",
        description=description,
        epilog=epilog,
        formatter_class=Formatter,
    )
    add_required(parser.add_argument_group("required"))
    add_data(parser.add_argument_group("data"), media)
    question = parser.add_argument_group("what the model sees and is asked")
    add_question(question)
    if media == "document":
        add_pages(question)
        parser.set_defaults(**NO_FRAMES)
    else:
        add_frames(question)
        parser.set_defaults(pages_per_prompt=NO_PAGES)
    if media == "video":
        add_windows(parser.add_argument_group("long videos"))
    else:
        parser.set_defaults(
            window_s=None, window_overlap_s=None, merge=False, merge_prompt=MERGE_PROMPT
        )
    add_answer(parser.add_argument_group("how it answers"))
    add_limits(parser.add_argument_group("limits, of one row's media"))
    add_machine(parser.add_argument_group("machine"))
    add_run(parser.add_argument_group("run"))
    return parser
