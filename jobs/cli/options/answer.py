"""Options for how the model answers."""

import argparse

from jobs.cli.options.parser import add_options
from jobs.cli.options.values import count, positive

_ANSWER = """
--max-tokens N: longest caption, in tokens
--temperature T: 0 always takes the likeliest token; the authors of Kimi-VL-A3B-Instruct recommend
    0.2
--top-p P: probability mass to draw from
--top-k K: draw from the K likeliest tokens; 0: all
--min-p P: draw no token less likely than this fraction of the likeliest token's probability
--repetition-penalty X: above 1 makes tokens of the prompt and the caption less likely
--loop-guard N: end a caption when its last N tokens only repeat each other; 0: never
--seed N: seed of the run; the seed of a row is computed from it and from the row's id
--stop TEXT: end a caption before this text; may be repeated
--schema FILE: write captions as JSON text that follows the JSON Schema in FILE.json, or the
    pydantic model FILE.py:Model (the file is run); JSON that --max-tokens cuts off gets the status
    `truncated`; for typed columns see --prompts
--thinking: with --schema: let the model reason first; the schema applies to the answer after it
--samples N: captions per row, drawn independently; with 2 or more, the column `samples` lists them
    all and `caption` holds the first
--token-logprobs: add the column `token_logprobs` with the log-probability of every generated token
"""


def add_answer(group: argparse._ArgumentGroup) -> None:
    """Add the options of generation."""
    add_options(
        group,
        _ANSWER,
        {
            "--max-tokens": {"type": positive, "default": 512},
            "--temperature": {"type": float, "default": 0.2},
            "--top-p": {"type": float, "default": 1.0},
            "--top-k": {"type": count, "default": 0},
            "--min-p": {"type": float, "default": 0.0},
            "--repetition-penalty": {"type": float, "default": 1.0},
            "--loop-guard": {"type": count, "default": 64},
            "--seed": {"type": int, "default": 0},
            "--stop": {"action": "append", "default": []},
            "--samples": {"type": positive, "default": 1},
        },
    )
