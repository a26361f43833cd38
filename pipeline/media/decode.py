"""Untrusted bytes, a video, a picture or a document, -> frames; their head tells what they are."""

from collections.abc import Sequence
from typing import BinaryIO

from pipeline.media.display import FrameRequest
from pipeline.media.images import decode_pages, decode_picture, is_picture
from pipeline.media.limits import DEFAULT_LIMITS, MediaError, MediaLimits
from pipeline.media.video import decode_video
from pipeline.media.windows import PageWindows, Span, Window, Windows
from pipeline.status import ErrorCode

_HEAD_BYTES = 1024  # within which a PDF must begin


def decode_media(
    source: bytes | BinaryIO,
    shots: Sequence[FrameRequest],
    *,
    windows: Windows | None = None,
    span_s: Span = (None, None),
    limits: MediaLimits = DEFAULT_LIMITS,
) -> list[Window]:
    """Decode what each request takes of each window of time, or each page; at least one window.

    Without windows the whole media are one window for each request. A picture is a video of one
    frame, or of as many as it is animated with. The arguments and errors are those of
    `pipeline.media.video.decode_video`.

    Pages are drawn with the `fit` of the one shot; its sampling and `span_s` say nothing of them.
    """
    head = _head(source)
    if not isinstance(windows, PageWindows):
        if head.startswith(b"%PDF-"):
            raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, "a PDF, which jobs.parse_documents reads")
        decode = decode_picture if is_picture(head) else decode_video
        return decode(source, shots, windows=windows, span_s=span_s, limits=limits)
    (shot,) = shots
    if b"%PDF-" in head:
        from pipeline.media.documents import decode_document  # PDFium, which few rows need

        return decode_document(source, fit=shot.fit, limits=limits)
    if is_picture(head):
        return decode_pages(source, fit=shot.fit, limits=limits)
    raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, "neither a PDF nor a picture")


def _head(source: bytes | BinaryIO) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    try:
        source.seek(0)
        return source.read(_HEAD_BYTES)
    except OSError as error:
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, f"reading failed: {error}") from error
