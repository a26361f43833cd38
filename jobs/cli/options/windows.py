"""Options for windows: of a long video, or of the pages of a document."""

import argparse

from jobs.cli.options.values import positive_or

MERGE_PROMPT = (
    "These are captions of the parts of one video, each after its seconds, in order. Write one "
    "description of the whole video from them."
)


def add_windows(group: argparse._ArgumentGroup) -> None:
    """Add the options for windows of a video and for what becomes of their captions."""
    group.add_argument(
        "--window-s",
        type=float,
        metavar="S",
        help="caption each window of this many seconds, in the column `timeline`; --frames, --fps "
        "and --at then apply to each window",
    )
    group.add_argument(
        "--window-overlap-s",
        type=float,
        metavar="S",
        help="seconds that a window shares with the one before it, at most half of --window-s",
    )
    group.add_argument(
        "--merge",
        action="store_true",
        help="ask the model once more to make one `caption` of the captions of all windows; "
        "without this option, `caption` lists them",
    )
    group.add_argument(
        "--merge-prompt",
        default=MERGE_PROMPT,
        metavar="TEXT",
        help="with --merge: the prompt, which the captions of the windows follow",
    )


def add_pages(group: argparse._ArgumentGroup) -> None:
    """Add the option for how many pages share a prompt."""
    group.add_argument(
        "--pages-per-prompt",
        type=positive_or("max"),
        default=1,
        metavar="N",
        help="pages that the model sees together; fewer if they and --max-tokens do not fit into "
        "the context; `max`: as many as fit",
    )


NO_PAGES = 0  # the value of --pages-per-prompt in jobs that do not read documents

NO_FRAMES: dict[str, object] = {  # values of the options that the document job does not have
    "frames": None,
    "fps": None,
    "at": None,
    "max_frames": 1,
    "keyframes": False,
    "tokens_per_row": None,
    "timestamps": "none",
    "start_column": None,
    "end_column": None,
}
