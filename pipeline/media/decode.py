"""Untrusted bytes -> frames, whether they are a video, a picture or a document.

The first bytes tell which of the three they are; names and types that a dataset claims do not.
"""

from collections.abc import Sequence
from typing import BinaryIO

from pipeline.media.display import FrameRequest
from pipeline.media.limits import DEFAULT_LIMITS, MediaError, MediaLimits
from pipeline.media.pictures.formats import picture_format, unread_picture
from pipeline.media.pictures.picture import decode_pages, decode_picture
from pipeline.media.video import decode_video
from pipeline.media.windows import PageWindows, Span, Window, Windows
from pipeline.status import ErrorCode

_HEAD_BYTES = 1024  # within which a PDF must begin


def decode_media(
    source: bytes | BinaryIO,
    requests: Sequence[FrameRequest],
    *,
    windows: Windows | None = None,
    span_s: Span = (None, None),
    limits: MediaLimits = DEFAULT_LIMITS,
) -> list[Window]:
    """Decode the frames of each request in each window; or, with `PageWindows`, each page.

    A picture is a video of one frame, or of all its frames if it is animated. Pages are drawn with
    the `fit` of the one request; its sampling and `span_s` do not apply to pages. Arguments,
    result and errors are otherwise those of `pipeline.media.video.decode_video`.
    """
    head = _head(source)
    if not isinstance(windows, PageWindows):
        if head.startswith(b"%PDF-"):
            raise MediaError(
                ErrorCode.MEDIA_UNSUPPORTED, "a PDF, which only jobs.parse_documents reads"
            )
        decode = decode_picture if _is_picture(head) else decode_video
        return decode(source, requests, windows=windows, span_s=span_s, limits=limits)
    (request,) = requests
    if b"%PDF-" in head:
        # Imported here, because it loads PDFium, which most runs do not need.
        from pipeline.media.documents import decode_document

        return decode_document(source, fit=request.fit, limits=limits)
    if _is_picture(head):
        return decode_pages(source, request, limits=limits)
    raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, "neither a PDF nor a picture")


def _is_picture(head: bytes) -> bool:
    """Whether the file is a picture that is read; a picture of another format is refused."""
    name = unread_picture(head)
    if name is not None:
        message = f"the file is {name}, which is not read; convert it to PNG or JPEG"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message)
    return picture_format(head) is not None


def _head(source: bytes | BinaryIO) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEAD_BYTES]
    try:
        source.seek(0)
        return source.read(_HEAD_BYTES)
    except OSError as error:
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, f"reading failed: {error}") from error
