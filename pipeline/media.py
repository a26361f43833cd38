"""Untrusted bytes, a video or a picture, -> `Frames`; what they are is read from their head."""

from collections.abc import Sequence
from typing import BinaryIO

from pipeline.codes import ErrorCode
from pipeline.frames import Frames
from pipeline.limits import DEFAULT_LIMITS, MediaError, MediaLimits
from pipeline.pictures import is_picture, shoot_picture
from pipeline.sampling import FrameSampling
from pipeline.video import Span, shoot_video
from pipeline.view import Fit, Shot

_HEAD_BYTES = 16


def decode_media(
    source: bytes | BinaryIO,
    sampling: FrameSampling,
    *,
    span_s: Span = (None, None),
    fit: Fit | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Frames:
    """Take one shot, as `shoot_media`."""
    shot = Shot(sampling=sampling, fit=fit)
    return shoot_media(source, [shot], span_s=span_s, limits=limits)[0]


def shoot_media(
    source: bytes | BinaryIO,
    shots: Sequence[Shot],
    *,
    span_s: Span = (None, None),
    limits: MediaLimits = DEFAULT_LIMITS,
) -> list[Frames]:
    """Decode a picture as a video of one frame, or of as many as it is animated with.

    The arguments and errors are those of `shoot_video`.
    """
    shoot = shoot_picture if is_picture(_head(source)) else shoot_video
    return shoot(source, shots, span_s=span_s, limits=limits)


def _head(source: bytes | BinaryIO) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    try:
        source.seek(0)
        return source.read(_HEAD_BYTES)
    except OSError as error:
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, f"reading failed: {error}") from error
