"""Options that limit what the media of one row may cost; media beyond a limit is refused."""

import argparse
from typing import TYPE_CHECKING

from jobs.cli.options.parser import add_options
from jobs.cli.options.values import num_bytes, positive

if TYPE_CHECKING:
    from pipeline.media.limits import MediaLimits

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
_LIMITS = """
--max-media-bytes SIZE: largest media file or object, such as 500M or 8G
--max-pixels N: most pixels of one frame
--max-duration-s S: longest video, in seconds
--max-stream-frames N: most frames that a video may contain, sampled or not
--max-pages N: most pages of an image file or a document
--max-windows N: most windows of a video, with --window-s
--max-rgb-bytes SIZE: most memory for the sampled frames at their final size
--max-decode-s S: most CPU time to decode a row, in seconds
--max-decode-bytes SIZE: most memory of the process that decodes a row
"""


def add_limits(group: argparse._ArgumentGroup) -> None:
    """Add the limits on the media of one row, with their defaults."""
    from pipeline.media.limits import DEFAULT_LIMITS

    kinds = {"bytes": num_bytes, "s": float}  # by the last word of the option
    settings = {
        flag: {
            "type": kinds.get(flag.rpartition("-")[2], positive),
            "default": getattr(DEFAULT_LIMITS, field),
        }
        for flag, field in LIMITS.items()
    }
    add_options(group, _LIMITS, settings)


def media_limits(options: argparse.Namespace) -> "MediaLimits":
    """Make the `MediaLimits` that these options ask for.

    Raises:
        ValueError: a value is out of its range.
    """
    from pipeline.media.limits import MediaLimits

    values = {f"--{name.replace('_', '-')}": value for name, value in vars(options).items()}
    return MediaLimits(**{field: values[flag] for flag, field in LIMITS.items()})
