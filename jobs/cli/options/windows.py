"""Windows: of a long video, or of a document's pages."""

import argparse

from jobs.cli.options.values import positive_or

MERGE_PROMPT = (
    "These are captions of the parts of one video, each after its seconds, in order. Write one "
    "description of the whole video from them."
)


def add_windows(group: argparse._ArgumentGroup) -> None:
    """Windows of a video, and what becomes of their captions."""
    group.add_argument(
        "--window-s",
        type=float,
        metavar="S",
        help="a caption for each window of so many seconds, in the column `timeline`; --frames, "
        "--fps and --at are of each window",
    )
    group.add_argument(
        "--window-overlap-s",
        type=float,
        metavar="S",
        help="of each window with the one before, at most half of it",
    )
    group.add_argument(
        "--merge",
        action="store_true",
        help="make one `caption` of those of the windows, by asking the model once more; "
        "otherwise it lists them",
    )
    group.add_argument(
        "--merge-prompt",
        default=MERGE_PROMPT,
        metavar="TEXT",
        help="with --merge: what is wanted; the captions follow it",
    )


def add_pages(group: argparse._ArgumentGroup) -> None:
    """How pages are put into prompts."""
    group.add_argument(
        "--pages-per-prompt",
        type=positive_or("max"),
        default=1,
        metavar="N",
        help="pages that the model sees together, fewer where the context holds no more with an "
        "answer of --max-tokens; `max`: as many as it holds",
    )


NO_PAGES = 0  # in place of --pages-per-prompt where rows are no documents

NO_FRAMES: dict[str, object] = {  # what documents have no options for
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
