"""Options for how the model answers."""

import argparse

from jobs.cli.options.values import count, positive


def add_answer(group: argparse._ArgumentGroup) -> None:
    """Add the options of generation."""
    group.add_argument(
        "--max-tokens", type=positive, default=512, metavar="N", help="longest caption, in tokens"
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.2,
        metavar="T",
        help="0 always takes the likeliest token; the authors of Kimi-VL-A3B-Instruct recommend "
        "0.2",
    )
    group.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="probability mass to draw from"
    )
    group.add_argument(
        "--top-k",
        type=count,
        default=0,
        metavar="K",
        help="draw from the K likeliest tokens; 0: all",
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="draw no token less likely than this fraction of the likeliest token's probability",
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
        help="end a caption when its last N tokens only repeat each other; 0: never",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the run; the seed of a row is computed from it and from the row's id",
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
        help="write captions as JSON text that follows the JSON Schema in FILE.json, or the "
        "pydantic model FILE.py:Model (the file is run); JSON that --max-tokens cuts off gets the "
        "status `truncated`; for typed columns see --prompts",
    )
    group.add_argument(
        "--thinking",
        action="store_true",
        help="with --schema: let the model reason first; the schema applies to the answer after it",
    )
    group.add_argument(
        "--samples",
        type=positive,
        default=1,
        metavar="N",
        help="captions per row, drawn independently; with 2 or more, the column `samples` lists "
        "them all and `caption` holds the first",
    )
    group.add_argument(
        "--token-logprobs",
        action="store_true",
        help="add the column `token_logprobs` with the log-probability of every generated token",
    )
