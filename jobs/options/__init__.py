"""The options that jobs share, by group; `jobs.settings` makes a `PipelineConfig` of them.

Nothing slow is imported: a wrong argument is told at once.
"""

from jobs.options.answer import add_answer
from jobs.options.limits import LIMITS, add_limits
from jobs.options.machine import add_machine
from jobs.options.parser import Formatter, Parser
from jobs.options.question import add_question
from jobs.options.rows import add_data, add_required
from jobs.options.run import add_run
from jobs.options.values import count, parse_names, positive, positive_or

__all__ = [
    "LIMITS",
    "Formatter",
    "Parser",
    "count",
    "job_parser",
    "parse_names",
    "positive",
    "positive_or",
]


def job_parser(prog: str, description: str, epilog: str, media: str = "video") -> Parser:
    """The parser of a job over rows of `media`, with all groups."""
    parser = Parser(
        prog=prog,
        usage="%(prog)s --input PARQUET --output DIR --model MODEL [option ...]",
        description=description,
        epilog=epilog,
        formatter_class=Formatter,
    )
    add_required(parser.add_argument_group("required"))
    add_data(parser.add_argument_group("data"), media)
    add_question(parser.add_argument_group("what the model sees and is asked"))
    add_answer(parser.add_argument_group("how it answers"))
    add_limits(parser.add_argument_group("limits, of one row's media"))
    add_machine(parser.add_argument_group("machine"))
    add_run(parser.add_argument_group("run"))
    return parser
