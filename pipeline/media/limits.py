"""`MediaLimits`, what the media of one row may cost, and `MediaError`, its refusal."""

import math
from dataclasses import dataclass, fields
from typing import NoReturn

from pipeline.status import ErrorCode


class MediaError(Exception):
    """The media of one row cannot be used. Other rows are not affected.

    Args:
        code: for the output's `error_code` column.
        message: what is wrong, with the offending value.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type["MediaError"], tuple[ErrorCode, str]]:
        return MediaError, (self.code, self.message)  # exceptions with two arguments need it


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What one video or picture may cost, and the frames of all media of a row.

    All give `media_too_large` but `max_decode_s`, which gives `decode_timeout`. The last two are
    kept by `pipeline.media.sandbox`, the others also where decoding runs in the calling process.
    """

    max_bytes: int = 8 << 30
    max_pixels: int = 8192 * 4320  # of one frame
    max_duration_s: float = 24 * 3600.0
    max_stream_frames: int = 2_000_000
    max_pages: int = 1000  # of a picture or a document
    max_windows: int = 256  # of a video that is cut into windows
    max_rgb_bytes: int = 768 << 20  # of all chosen frames of a row at their final size
    max_decode_s: float = 600.0  # of CPU time; waiting for the file may take as long again
    max_decode_bytes: int = 1 << 30  # of memory, with the chosen frames

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < math.inf:
                raise ValueError(f"{field.name} must be positive and finite, got {value}")

    def check_num_bytes(self, num_bytes: int) -> None:
        """Refuse a file."""
        if num_bytes == 0:
            raise MediaError(ErrorCode.MEDIA_CORRUPT, "the file has no bytes")
        if num_bytes > self.max_bytes:
            refuse(f"the file has {num_bytes} bytes", self.max_bytes, "--max-media-bytes")

    def check_pixels(self, width_px: int, height_px: int) -> None:
        """Refuse a frame."""
        if width_px * height_px > self.max_pixels:
            what = f"a frame has {width_px} x {height_px} pixels"
            refuse(what, self.max_pixels, "--max-pixels")

    def check_num_frames(self, num_frames: int) -> None:
        """Refuse a stream."""
        if num_frames > self.max_stream_frames:
            what = f"the video has {num_frames} frames or more"
            refuse(what, self.max_stream_frames, "--max-stream-frames")

    def check_duration(self, duration_s: float) -> None:
        """Refuse a stream."""
        if duration_s > self.max_duration_s:
            what = f"the video lasts {duration_s:.0f} s"
            refuse(what, f"{self.max_duration_s:.0f} s", "--max-duration-s")

    def check_rgb(
        self, num_frames: int, width_px: int, height_px: int, other_bytes: int = 0
    ) -> int:
        """Refuse to take so many frames of one size beside other shots; the bytes of all."""
        num_bytes = num_frames * width_px * height_px * 3 + other_bytes
        if num_bytes > self.max_rgb_bytes:
            beside = f" with {other_bytes} of other shots" if other_bytes else ""
            what = f"{num_frames} frames of {width_px} x {height_px} pixels take {num_bytes} bytes"
            refuse(what + beside, self.max_rgb_bytes, "--max-rgb-bytes")
        return num_bytes

    def check_rgb_of_row(self, num_bytes: int, what: str) -> None:
        """Refuse what several media of a row take together."""
        if num_bytes > self.max_rgb_bytes:
            refuse(f"{what} take {num_bytes} bytes", self.max_rgb_bytes, "--max-rgb-bytes")


DEFAULT_LIMITS = MediaLimits()


def refuse(
    what: str, limit: object, flag: str, code: ErrorCode = ErrorCode.MEDIA_TOO_LARGE
) -> NoReturn:
    """Raise the `MediaError` of a limit, with the flag that moves it."""
    raise MediaError(code, f"{what}, the limit is {limit} ({flag})")
