"""Options that limit what the media of one row may cost; media beyond a limit is refused."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.cli.options.values import num_bytes, positive

if TYPE_CHECKING:
    from pipeline.media.limits import MediaLimits


def add_limits(group: argparse._ArgumentGroup) -> None:
    """Add the limits on the media of one row, with their defaults."""
    from pipeline.media.limits import DEFAULT_LIMITS

    def add(flag: str, parse: Callable[[str], float], metavar: str, text: str) -> None:
        value = getattr(DEFAULT_LIMITS, LIMITS[flag])
        group.add_argument(flag, type=parse, default=value, metavar=metavar, help=text)

    add("--max-media-bytes", num_bytes, "SIZE", "largest media file or object, such as 500M or 8G")
    add("--max-pixels", positive, "N", "most pixels of one frame")
    add("--max-duration-s", float, "S", "longest video, in seconds")
    add(
        "--max-stream-frames", positive, "N", "most frames that a video may contain, sampled or not"
    )
    add("--max-pages", positive, "N", "most pages of an image file or a document")
    add("--max-windows", positive, "N", "most windows of a video, with --window-s")
    add(
        "--max-rgb-bytes",
        num_bytes,
        "SIZE",
        "most memory for the sampled frames at their final size",
    )
    add("--max-decode-s", float, "S", "most CPU time to decode a row, in seconds")
    add("--max-decode-bytes", num_bytes, "SIZE", "most memory of the process that decodes a row")


def media_limits(options: argparse.Namespace) -> "MediaLimits":
    """Make the `MediaLimits` that these options ask for.

    Raises:
        ValueError: a value is out of its range.
    """
    from pipeline.media.limits import MediaLimits

    values = vars(options)
    names = {flag.removeprefix("--").replace("-", "_"): name for flag, name in LIMITS.items()}
    return MediaLimits(**{name: values[option] for option, name in names.items()})


LIMITS = {  # option to field of `pipeline.media.limits.MediaLimits`
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
