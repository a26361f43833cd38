"""What the model sees of a row, and is asked."""

import argparse

from jobs.cli.options.values import positive, positive_or, seconds


def add_question(group: argparse._ArgumentGroup) -> None:
    """Prompts, and how large a picture is shown."""
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
        "{column} is a row's value, and a prompt can have settings and a schema of its own; the "
        "column then has the type that the schema says (struct, list, string, int64, float64, "
        "bool), or is JSON text with `as: json`; a schema that says no one type is refused",
    )
    group.add_argument(
        "--frame-tokens",
        type=positive_or("max"),
        default=256,
        metavar="N",
        help="most visual tokens of a frame, each of 28 x 28 pixels; `max` is the checkpoint's "
        "own limit",
    )


def add_frames(group: argparse._ArgumentGroup) -> None:
    """Which frames, and how they share a row's tokens."""
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
        type=seconds,
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
