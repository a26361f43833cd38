"""Untrusted bytes, a video or a picture, -> `Frames`; what they are is read from their head."""

from typing import BinaryIO

from pipeline.codes import ErrorCode
from pipeline.frames import Frames
from pipeline.limits import DEFAULT_LIMITS, MediaError, MediaLimits
from pipeline.pictures import decode_picture, is_picture
from pipeline.sampling import FrameSampling
from pipeline.video import Span, decode_video
from pipeline.view import Fit

_HEAD_BYTES = 16


def decode_media(
    source: bytes | BinaryIO,
    sampling: FrameSampling,
    *,
    span_s: Span = (None, None),
    fit: Fit | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Frames:
    """Decode a picture as a video of one frame, or of as many as it is animated with.

    The arguments and errors are those of `decode_video`.
    """
    if is_picture(_head(source)):
        return decode_picture(source, sampling, span_s=span_s, fit=fit, limits=limits)
    return decode_video(source, sampling, span_s=span_s, fit=fit, limits=limits)


def _head(source: bytes | BinaryIO) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    try:
        source.seek(0)
        return source.read(_HEAD_BYTES)
    except OSError as error:
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, f"reading failed: {error}") from error
