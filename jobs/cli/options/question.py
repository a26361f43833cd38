"""Options for what the model sees of a row, and what it is asked."""

import argparse

from jobs.cli.options.parser import add_options
from jobs.cli.options.values import color_or, positive, positive_or, seconds

MERGE_PROMPT = (
    "These are captions of the parts of one video, each after its seconds, in order. Write one "
    "description of the whole video from them."
)
NO_PAGES = 0  # the value of --pages-per-prompt in jobs that do not read documents

NO_FRAMES: dict[str, object] = {  # values of the options that the document job does not have
    **dict.fromkeys(("frames", "fps", "at", "tokens_per_row", "start_column", "end_column")),
    "max_frames": 1,
    "keyframes": False,
    "timestamps": "none",
}

_QUESTION = """
--prompt TEXT: prompt for each row
--prompts YAML: ask several prompts, each with an output column of its own: a file of `name: text`;
    {column} inserts a value of the row; a prompt can have its own settings and schema; the column
    then has the type of the schema (struct, list, string, int64, float64, bool), or is JSON text
    with `as: json`; a schema that allows several types is refused
--frame-tokens N: most visual tokens per frame, each of 28 x 28 pixels; larger frames are scaled
    down; `max` is the limit of the checkpoint
--background COLOR: what shows through transparent pictures: a name such as white, or #rrggbb, or
    `none` for the colours that a file has under its transparency; `auto` is white, but `none` where
    the output was begun by a version without this option
"""
_WHICH_FRAMES = """
--frames N: number of frames, evenly over the video (default: 8, or --fps 1 with --tokens-per-row)
--fps F: frames per second, instead of --frames
--at S,S: times of the frames, in seconds from the start of the span, instead of --frames
"""
_FRAMES = """
--max-frames N: with --fps: most frames per row; a longer video gets this many, evenly
--keyframes: take the last keyframe before each frame: decodes faster, at slightly other times
--tokens-per-row N: cap the visual tokens of a row; the frames of --frames or --fps split the
    budget, each at most --frame-tokens; where a frame would get fewer than 64, there are fewer
    frames
--timestamps: text before each frame: nothing, its time as `3.5s`, or as `[00:03]`
"""
_WINDOWS = """
--window-s S: caption each window of this many seconds, in the column `timeline`; --frames, --fps
    and --at then apply to each window
--window-overlap-s S: seconds that a window shares with the one before it, at most half of
    --window-s
--merge: ask the model once more to make one `caption` of the captions of all windows; without this
    option, `caption` lists them
--merge-prompt TEXT: with --merge: the prompt, which the captions of the windows follow
"""
_PAGES = """
--pages-per-prompt N: pages that the model sees together; fewer if they and --max-tokens do not fit
    into the context; `max`: as many as fit
"""


def add_question(group: argparse._ArgumentGroup) -> None:
    """Add the prompts, and the size at which frames are shown."""
    prompt = {"default": "Describe this video in detail."}
    tokens = {"type": positive_or("max"), "default": 256}
    background = {"type": color_or("auto", "none"), "default": "auto"}
    of_each = {"--prompt": prompt, "--frame-tokens": tokens, "--background": background}
    add_options(group, _QUESTION, of_each)


def add_frames(group: argparse._ArgumentGroup) -> None:
    """Add the options that choose frames and limit the visual tokens of a row."""
    add_options(
        group.add_mutually_exclusive_group(),
        _WHICH_FRAMES,
        {"--frames": {"type": positive}, "--fps": {"type": float}, "--at": {"type": seconds}},
    )
    add_options(
        group,
        _FRAMES,
        {
            "--max-frames": {"type": positive, "default": 128},
            "--tokens-per-row": {"type": positive},
            "--timestamps": {"choices": ("none", "seconds", "mm:ss"), "default": "seconds"},
        },
    )


def add_windows(group: argparse._ArgumentGroup) -> None:
    """Add the options for windows of a video and for what becomes of their captions."""
    lengths = {flag: {"type": float} for flag in ("--window-s", "--window-overlap-s")}
    add_options(group, _WINDOWS, {**lengths, "--merge-prompt": {"default": MERGE_PROMPT}})


def add_pages(group: argparse._ArgumentGroup) -> None:
    """Add the option for how many pages share a prompt."""
    add_options(group, _PAGES, {"--pages-per-prompt": {"type": positive_or("max"), "default": 1}})
