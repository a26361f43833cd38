"""What the media of one row may cost before it is refused."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.cli.options.values import num_bytes, positive

if TYPE_CHECKING:
    from pipeline.media.limits import MediaLimits


def add_limits(group: argparse._ArgumentGroup) -> None:
    """What the media of one row may cost before it is refused."""
    from pipeline.media.limits import DEFAULT_LIMITS

    def add(flag: str, parse: Callable[[str], float], metavar: str, text: str) -> None:
        value = getattr(DEFAULT_LIMITS, LIMITS[flag])
        group.add_argument(flag, type=parse, default=value, metavar=metavar, help=text)

    add("--max-media-bytes", num_bytes, "SIZE", "of one file or object, as in 500M or 8G")
    add("--max-pixels", positive, "N", "of one frame")
    add("--max-duration-s", float, "S", "of a video")
    add("--max-stream-frames", positive, "N", "of a video, whether they are taken or not")
    add("--max-pages", positive, "N", "of a picture or document")
    add("--max-windows", positive, "N", "of a video, with --window-s")
    add("--max-rgb-bytes", num_bytes, "SIZE", "of the chosen frames at their final size")
    add("--max-decode-s", float, "S", "of CPU time to decode a row")
    add("--max-decode-bytes", num_bytes, "SIZE", "of memory to decode a row")


def media_limits(options: argparse.Namespace) -> "MediaLimits":
    """What these options say.

    Raises:
        ValueError: a value cannot work.
    """
    from pipeline.media.limits import MediaLimits

    values = vars(options)
    names = {flag.removeprefix("--").replace("-", "_"): name for flag, name in LIMITS.items()}
    return MediaLimits(**{name: values[option] for option, name in names.items()})


LIMITS = {  # option -> field of `pipeline.media.limits.MediaLimits`
    "--max-media-bytes": "max_bytes",
    "--max-pixels": "max_pixels",
    "--max-duration-s": "max_duration_s",
    "--max-stream-frames": "max_stream_frames",
    "--max-pages": "max_pages",
    "--max-windows": "max_windows",
    "--max-rgb-bytes": "max_rgb_bytes",
    "--max-decode-s": "max_decode_s",
    "--max-decode-bytes": "max_decode_bytes",
}
