"""The options that jobs share, by group; `jobs.settings` makes a `PipelineConfig` of them.

Nothing slow is imported: a wrong argument is told at once.
"""

import argparse
from collections.abc import Callable
from typing import NoReturn


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Paragraphs as they are written; the default behind each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, [], argparse.SUPPRESS) or action.nargs == 0:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the long usage."""

    where = ""  # before the message, such as the name of a file

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{self.prog}: error: {self.where}{message} (see --help)\n")


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
        help="rows that travel together, and wait for the slowest of them; default: auto, 1 for "
        "one copy of the model and up to 8 for many",
    )


def add_question(group: argparse._ArgumentGroup) -> None:
    """Prompt and frames."""
    group.add_argument(
        "--prompt",
        default="Describe this video in detail.",
        metavar="TEXT",
        help="what is wanted of each video",
    )
    group.add_argument(
        "--prompts",
        metavar="YAML",
        help="instead several prompts, each with a column of its own: a file of `name: text`; "
        "{column} is a row's value, and a prompt can have settings and a schema of its own",
    )
    frames = group.add_mutually_exclusive_group()
    frames.add_argument(
        "--frames",
        type=positive,
        metavar="N",
        help="frames, evenly over the video (default: 8, or --fps 1 with --tokens-per-row)",
    )
    frames.add_argument("--fps", type=float, metavar="F", help="or so many frames per second")
    frames.add_argument(
        "--at",
        type=_seconds,
        metavar="S,S",
        help="or the frames at these seconds from the start of the span",
    )
    group.add_argument(
        "--max-frames",
        type=positive,
        default=128,
        metavar="N",
        help="with --fps: where that would be more, so many evenly",
    )
    group.add_argument(
        "--keyframes",
        action="store_true",
        help="take the last keyframe in place of each frame: decodes less, at other times",
    )
    group.add_argument(
        "--frame-tokens",
        type=positive_or("max"),
        default=256,
        metavar="N",
        help="most visual tokens of a frame, each of 28 x 28 pixels; `max` is the checkpoint's "
        "own limit",
    )
    group.add_argument(
        "--tokens-per-row",
        type=positive,
        metavar="N",
        help="visual tokens that the frames of a row share: as many frames as --frames or --fps "
        "ask for, each of N / frames tokens up to --frame-tokens; so few frames that each has 64",
    )
    group.add_argument(
        "--timestamps",
        choices=("none", "seconds", "mm:ss"),
        default="seconds",
        help="text before each frame: nothing, `3.5s` or `[00:03]`",
    )


def add_limits(group: argparse._ArgumentGroup) -> None:
    """What the media of one row may cost before it is refused."""
    from pipeline.limits import DEFAULT_LIMITS

    def add(flag: str, parse: Callable[[str], float], metavar: str, text: str) -> None:
        value = getattr(DEFAULT_LIMITS, LIMITS[flag])
        group.add_argument(flag, type=parse, default=value, metavar=metavar, help=text)

    add("--max-media-bytes", _num_bytes, "SIZE", "of one file or object, as in 500M or 8G")
    add("--max-pixels", positive, "N", "of one frame")
    add("--max-duration-s", float, "S", "of a video")
    add("--max-stream-frames", positive, "N", "of a video, whether they are taken or not")
    add("--max-pages", positive, "N", "of a picture")
    add("--max-rgb-bytes", _num_bytes, "SIZE", "of the chosen frames at their final size")
    add("--max-decode-s", float, "S", "of CPU time to decode a row")
    add("--max-decode-bytes", _num_bytes, "SIZE", "of memory to decode a row")


LIMITS = {  # option -> field of `pipeline.limits.MediaLimits`
    "--max-media-bytes": "max_bytes",
    "--max-pixels": "max_pixels",
    "--max-duration-s": "max_duration_s",
    "--max-stream-frames": "max_stream_frames",
    "--max-pages": "max_pages",
    "--max-rgb-bytes": "max_rgb_bytes",
    "--max-decode-s": "max_decode_s",
    "--max-decode-bytes": "max_decode_bytes",
}


def add_answer(group: argparse._ArgumentGroup) -> None:
    """Generation."""
    group.add_argument("--max-tokens", type=positive, default=512, metavar="N", help="of a caption")
    group.add_argument(
        "--temperature",
        type=float,
        default=0.2,
        metavar="T",
        help="0 is greedy; 0.2 is what Kimi-VL-A3B-Instruct's authors recommend",
    )
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus of sampling")
    group.add_argument(
        "--top-k", type=count, default=0, metavar="K", help="likeliest tokens to draw from; 0: all"
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="draw no token that is less likely than this fraction of the likeliest",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1 makes tokens of the prompt and the caption less likely",
    )
    group.add_argument(
        "--loop-guard",
        type=count,
        default=64,
        metavar="N",
        help="end a caption whose last N tokens only repeat themselves; 0: never",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the run; each row's own follows from it and from its id",
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end a caption before this text; may be repeated",
    )
    group.add_argument(
        "--schema",
        metavar="FILE",
        help="captions are JSON that follows the JSON Schema of FILE.json, or the pydantic model "
        "of FILE.py:Model (which is run); what the length limit cuts is `truncated`",
    )
    group.add_argument(
        "--thinking",
        action="store_true",
        help="with --schema: the model reasons first, and the schema holds for what follows",
    )
    group.add_argument(
        "--samples",
        type=positive,
        default=1,
        metavar="N",
        help="captions of each row, drawn independently; from 2 on the column `samples` lists all "
        "of them, and `caption` is the first",
    )
    group.add_argument(
        "--token-logprobs",
        action="store_true",
        help="write the log-probability of every token to the column `token_logprobs`",
    )


def add_machine(group: argparse._ArgumentGroup) -> None:
    """Devices, copies of the model and threads."""
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: GPUs if the cluster has any",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="auto: as the weights are stored",
    )
    group.add_argument(
        "--groups",
        type=positive_or("auto"),
        metavar="N",
        help="copies of the model; default: auto, as many as the GPUs make, or one",
    )
    group.add_argument(
        "--expert-parallel",
        type=positive_or("auto"),
        metavar="R",
        help="ranks, one GPU each, that share the experts of a copy; default: auto, one, or what "
        "--groups leaves for each",
    )
    group.add_argument(
        "--dispatch",
        choices=("auto", "all_to_all", "all_gather"),
        default="auto",
        help="how tokens travel between the ranks of a copy",
    )
    group.add_argument(
        "--placement",
        choices=("strict_pack", "pack", "spread"),
        default="strict_pack",
        help="of the ranks of a copy: on one node, on few, on many",
    )
    group.add_argument(
        "--threads",
        type=positive_or("auto"),
        metavar="N",
        help="of torch in each rank on CPUs; default: auto, an equal share of half of the CPUs",
    )
    group.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        metavar="N",
        help="captions that one copy writes at the same time",
    )
    cache = group.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache-gib",
        type=float,
        default=4.0,
        metavar="G",
        help="memory of each copy for the tokens of its prompts and captions",
    )
    cache.add_argument(
        "--cache-fraction",
        type=float,
        metavar="F",
        help="or this fraction of what is free once the weights are loaded; copies that share a "
        "machine share what is free",
    )


def add_run(group: argparse._ArgumentGroup) -> None:
    """What to do with an output that is there, and the file that options can stand in."""
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
        help="options from a file, with their names as keys; the command line wins. _run.yaml in "
        "an output directory repeats the run that wrote it",
    )


def count(text: str) -> int:
    """Parse a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def positive_or(word: str) -> Callable[[str], int | None]:
    """A positive number, or a word that stands for None."""

    def parse(text: str) -> int | None:
        return None if text == word else positive(text)

    return parse


def _seconds(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seconds, such as 0,2.5") from None


def _num_bytes(text: str) -> int:
    """A size such as 500M or 8G, in powers of 1024."""
    number, unit = text.removesuffix("iB").removesuffix("B"), 1
    if number[-1:].upper() in ("K", "M", "G", "T"):
        number, unit = number[:-1], 1024 ** ("KMGT".index(number[-1].upper()) + 1)
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 500M or 8G")
    return int(number) * unit


def parse_names(text: str) -> tuple[str, ...]:
    """Parse A,B."""
    return tuple(name for name in text.split(",") if name)
