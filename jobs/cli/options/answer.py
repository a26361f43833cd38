"""How the model answers."""

import argparse

from jobs.cli.options.values import count, positive


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
        "of FILE.py:Model (which is run), as text; what the length limit cuts is `truncated`; for "
        "typed columns see --prompts",
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
