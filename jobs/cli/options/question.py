"""Options for what the model sees of a row, and what it is asked."""

import argparse

from jobs.cli.options.values import positive, positive_or, seconds


def add_question(group: argparse._ArgumentGroup) -> None:
    """Add the prompts, and the size at which frames are shown."""
    group.add_argument(
        "--prompt",
        default="Describe this video in detail.",
        metavar="TEXT",
        help="prompt for each row",
    )
    group.add_argument(
        "--prompts",
        metavar="YAML",
        help="ask several prompts, each with an output column of its own: a file of `name: text`; "
        "{column} inserts a value of the row; a prompt can have its own settings and schema; the "
        "column then has the type of the schema (struct, list, string, int64, float64, bool), or "
        "is JSON text with `as: json`; a schema that allows several types is refused",
    )
    group.add_argument(
        "--frame-tokens",
        type=positive_or("max"),
        default=256,
        metavar="N",
        help="most visual tokens per frame, each of 28 x 28 pixels; larger frames are scaled "
        "down; `max` is the limit of the checkpoint",
    )


def add_frames(group: argparse._ArgumentGroup) -> None:
    """Add the options that choose frames and limit the visual tokens of a row."""
    frames = group.add_mutually_exclusive_group()
    frames.add_argument(
        "--frames",
        type=positive,
        metavar="N",
        help="number of frames, evenly over the video (default: 8, or --fps 1 with "
        "--tokens-per-row)",
    )
    frames.add_argument(
        "--fps", type=float, metavar="F", help="frames per second, instead of --frames"
    )
    frames.add_argument(
        "--at",
        type=seconds,
        metavar="S,S",
        help="times of the frames, in seconds from the start of the span, instead of --frames",
    )
    group.add_argument(
        "--max-frames",
        type=positive,
        default=128,
        metavar="N",
        help="with --fps: most frames per row; a longer video gets this many, evenly",
    )
    group.add_argument(
        "--keyframes",
        action="store_true",
        help="take the last keyframe before each frame: decodes faster, at slightly other times",
    )
    group.add_argument(
        "--tokens-per-row",
        type=positive,
        metavar="N",
        help="cap the visual tokens of a row; the frames of --frames or --fps split the budget, "
        "each at most --frame-tokens; where a frame would get fewer than 64, there are fewer "
        "frames",
    )
    group.add_argument(
        "--timestamps",
        choices=("none", "seconds", "mm:ss"),
        default="seconds",
        help="text before each frame: nothing, its time as `3.5s`, or as `[00:03]`",
    )
