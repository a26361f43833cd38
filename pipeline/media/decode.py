"""Untrusted bytes -> frames, whether they are a video, a picture or a document.

The first bytes tell which of the three they are; names and types that a dataset claims do not. What
no decoder can read is named by its first bytes too, such as a login page.
"""

from collections.abc import Sequence
from typing import BinaryIO

from pipeline.media.display import FrameRequest
from pipeline.media.limits import DEFAULT_LIMITS, MediaError, MediaLimits
from pipeline.media.pictures.formats import picture_format
from pipeline.media.pictures.picture import decode_pages, decode_picture
from pipeline.media.signatures import HEAD_BYTES, describe, media_kind
from pipeline.media.video import decode_video
from pipeline.media.windows import PageWindows, Span, Window, Windows
from pipeline.status import ErrorCode

_PDF_HEAD_BYTES = 1024  # within which a PDF must begin
# What the decoders say of a file that is no media at all.
_UNREAD = (ErrorCode.MEDIA_CORRUPT, ErrorCode.MEDIA_UNSUPPORTED, ErrorCode.NO_VIDEO_STREAM)


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
    try:
        return _decode(source, requests, windows, span_s, limits)
    except MediaError as error:
        if error.code not in _UNREAD or (found := describe(_head(source, HEAD_BYTES))) is None:
            raise
        raise MediaError(error.code, f"the file is {found}") from error


def _decode(
    source: bytes | BinaryIO,
    requests: Sequence[FrameRequest],
    windows: Windows | None,
    span_s: Span,
    limits: MediaLimits,
) -> list[Window]:
    head = _head(source, _PDF_HEAD_BYTES)
    if not isinstance(windows, PageWindows):
        if head.startswith(b"%PDF-"):
            raise MediaError(
                ErrorCode.MEDIA_UNSUPPORTED, "a PDF, which only jobs.parse_documents reads"
            )
        decode = decode_video if picture_format(head) is None else decode_picture
        return decode(source, requests, windows=windows, span_s=span_s, limits=limits)
    (request,) = requests
    if b"%PDF-" in head:
        # Imported here, because it loads PDFium, which most runs do not need.
        from pipeline.media.documents import decode_document

        return decode_document(source, fit=request.fit, limits=limits)
    if picture_format(head) is not None:
        return decode_pages(source, request, limits=limits)
    found = f", but {kind}" if (kind := media_kind(head)) else ""
    raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, f"neither a PDF nor a picture{found}")


def _head(source: bytes | BinaryIO, num_bytes: int) -> bytes:
    if isinstance(source, bytes):
        return source[:num_bytes]
    try:
        source.seek(0)
        return source.read(num_bytes)
    except OSError as error:
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, f"reading failed: {error}") from error
