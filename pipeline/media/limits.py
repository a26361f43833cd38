"""`MediaLimits`, what the media of one row may cost, and `MediaError`, why they cannot be used."""

import math
from dataclasses import dataclass, fields
from typing import NoReturn

from pipeline.status import ErrorCode


class MediaError(Exception):
    """The media of one row cannot be used; the row's output gets the code and the message."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type["MediaError"], tuple[ErrorCode, str]]:
        # By default, unpickling calls an exception's class with the message alone.
        return MediaError, (self.code, self.message)


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Limits on one video, picture or document, and on the frames of all media of a row.

    A row over a limit gets the error `media_too_large`, or `decode_timeout` for `max_decode_s`.
    Only `pipeline.media.sandbox` enforces the last two limits; the others hold in any process.

    Raises:
        ValueError: a limit is not positive and finite.
    """

    max_bytes: int = 8 << 30
    max_pixels: int = 8192 * 4320  # of one frame
    max_duration_s: float = 24 * 3600.0
    max_stream_frames: int = 2_000_000
    max_pages: int = 1000  # of a picture or a document
    max_windows: int = 256  # of a video that is cut into windows
    max_rgb_bytes: int = 768 << 20  # of all chosen frames of a row at their final size
    max_decode_s: float = 600.0  # of CPU time; the sandbox also bounds the wall time from it
    max_decode_bytes: int = 1 << 30  # of memory, including the chosen frames

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < math.inf:
                raise ValueError(f"{field.name} must be positive and finite, got {value}")

    def check_num_bytes(self, num_bytes: int) -> None:
        """Refuse a file that is empty or too long."""
        if num_bytes == 0:
            raise MediaError(ErrorCode.MEDIA_CORRUPT, "the file is empty: it has no bytes")
        if num_bytes > self.max_bytes:
            refuse(f"the file has {num_bytes} bytes", self.max_bytes, "--max-media-bytes")

    def check_pixels(self, width_px: int, height_px: int) -> None:
        """Refuse a frame with too many pixels."""
        if width_px * height_px > self.max_pixels:
            what = f"a frame has {width_px} x {height_px} pixels"
            refuse(what, self.max_pixels, "--max-pixels")

    def check_num_frames(self, num_frames: int) -> None:
        """Refuse a stream with too many frames."""
        if num_frames > self.max_stream_frames:
            what = f"the video has {num_frames} frames or more"
            refuse(what, self.max_stream_frames, "--max-stream-frames")

    def check_duration(self, duration_s: float) -> None:
        """Refuse a stream that lasts too long."""
        if duration_s > self.max_duration_s:
            what = f"the video lasts {duration_s:.0f} s"
            refuse(what, f"{self.max_duration_s:.0f} s", "--max-duration-s")

    def check_rgb(self, num_frames: int, width_px: int, height_px: int, other_bytes: int) -> int:
        """Refuse frames of one size that take too much memory, `other_bytes` of the row included.

        Returns:
            The bytes of all frames, the others included.
        """
        num_bytes = num_frames * width_px * height_px * 3 + other_bytes
        if num_bytes > self.max_rgb_bytes:
            what = f"{num_frames} frames of {width_px} x {height_px} pixels take {num_bytes} bytes"
            if other_bytes:
                what += f" together with {other_bytes} bytes of other frames"
            refuse(what, self.max_rgb_bytes, "--max-rgb-bytes")
        return num_bytes

    def check_rgb_of_row(self, num_bytes: int, what: str) -> None:
        """Refuse several media of a row whose frames take too much memory together."""
        if num_bytes > self.max_rgb_bytes:
            refuse(f"{what} take {num_bytes} bytes", self.max_rgb_bytes, "--max-rgb-bytes")


DEFAULT_LIMITS = MediaLimits()


def refuse(
    what: str, limit: object, flag: str, code: ErrorCode = ErrorCode.MEDIA_TOO_LARGE
) -> NoReturn:
    """Raise the `MediaError` for a value over its limit, with the option that moves the limit."""
    raise MediaError(code, f"{what}, the limit is {limit} ({flag})")
