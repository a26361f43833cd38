"""Untrusted PDF bytes -> a picture of each page, drawn by PDFium at the size the network wants.

PDFium is native code that reads what strangers wrote, so jobs call it in a decoding process only.
It gets an open file, never a name. Forms are drawn with what is filled in. Scripts, launch actions,
links and files that a document names do nothing, because this PDFium has no JavaScript, and nothing
here runs an action. Importing this module loads PDFium.
"""

import ctypes
import io
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, BinaryIO

import numpy as np
from pypdfium2 import PdfBitmap, PdfDocument, PdfFormEnv, PdfiumError, PdfPage, raw

from model.inputs.prompt import PromptError
from pipeline.media.display import Fit
from pipeline.media.frames import Frames, MediaFacts
from pipeline.media.limits import MediaError, MediaLimits, refuse
from pipeline.media.windows import Window
from pipeline.status import ErrorCode

_DPI = 200  # of a page before it is fitted; few scans are finer
_POINTS_PER_INCH = 72
_FLAGS = raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER  # draw comments and stamps; RGB, not BGR
_WHITE = (255, 255, 255, 255)
_CODES: Mapping[int, tuple[ErrorCode, str]] = {
    raw.FPDF_ERR_PASSWORD: (ErrorCode.MEDIA_ENCRYPTED, "the document opens with a password only"),
    raw.FPDF_ERR_SECURITY: (ErrorCode.MEDIA_ENCRYPTED, "the encryption is of an unknown kind"),
}
_Size = tuple[int, int]  # width and height


def decode_document(
    source: bytes | BinaryIO, *, fit: Fit | None, limits: MediaLimits
) -> list[Window]:
    """Draw each page of a PDF as a window of its own; a page that cannot be drawn has an error.

    `fit` gets the size of a page at 200 dpi. The facts of a page give its width and height in
    points (1/72 inch), not in pixels.

    Raises:
        MediaError: the document cannot be used; `code` says why.
    """
    file = _File(source)
    limits.check_num_bytes(file.num_bytes)
    with closing(_open(file)) as document:
        if len(document) > limits.max_pages:
            refuse(f"the document has {len(document)} pages", limits.max_pages, "--max-pages")
        sizes_px = list(_page_sizes(document, fit, limits))
        num_bytes = 0
        for size_px in sizes_px:
            if isinstance(size_px, tuple):
                num_bytes = limits.check_rgb(1, *size_px, num_bytes)
        pages = [_page(document, index, size_px) for index, size_px in enumerate(sizes_px)]
        file.check()
        return pages


def _open(file: "_File") -> PdfDocument:
    handle = raw.FPDF_LoadCustomDocument(file.access, None)
    if not handle:
        file.check()
        unknown = (ErrorCode.MEDIA_CORRUPT, "the document cannot be read")
        raise MediaError(*_CODES.get(raw.FPDF_GetLastError(), unknown))
    document = PdfDocument(handle)
    if len(document) == 0:
        document.close()
        raise MediaError(ErrorCode.NO_FRAMES, "the document has no pages")
    document.formenv = _form_environment(document)
    return document


def _form_environment(document: PdfDocument) -> PdfFormEnv:
    """Make what draws the fields of forms, also where the file does not say how they look.

    `PdfDocument.init_forms` leaves out fields of documents that name no form.
    """
    config = raw.FPDF_FORMFILLINFO(version=2)  # without callbacks and without JavaScript
    handle = raw.FPDFDOC_InitFormFillEnvironment(document, config)
    if not handle:
        raise MediaError(ErrorCode.MEDIA_CORRUPT, "the form of the document cannot be read")
    return PdfFormEnv(handle, config)


def _page_sizes(
    document: PdfDocument, fit: Fit | None, limits: MediaLimits
) -> Iterator[_Size | MediaError]:
    """Yield the final size of each page, or why it has none."""
    for index in range(len(document)):
        try:
            yield _page_size(document.get_page_size(index), fit, limits)
        except MediaError as error:
            yield error
        except PromptError as error:  # raised by `fit`
            yield MediaError(ErrorCode(error.code), error.message)
        except PdfiumError:
            yield _broken()


def _page_size(size_pt: tuple[float, float], fit: Fit | None, limits: MediaLimits) -> _Size:
    width, height = size_pt
    if not (0.0 < width < math.inf and 0.0 < height < math.inf):
        raise MediaError(ErrorCode.MEDIA_CORRUPT, f"the page measures {width} x {height} points")
    if max(1.0, width) * max(1.0, height) > limits.max_pixels:
        what = f"the page measures {width:.0f} x {height:.0f} points, each a pixel at least"
        refuse(what, limits.max_pixels, "--max-pixels")
    width_px, height_px = (max(1, round(side * _DPI / _POINTS_PER_INCH)) for side in size_pt)
    return (width_px, height_px) if fit is None else fit(width_px, height_px, 1)


def _page(document: PdfDocument, index: int, size_px: _Size | MediaError) -> Window:
    if isinstance(size_px, MediaError):
        return Window(start=index, end=index + 1, error=size_px)
    try:
        with closing(document[index]) as page:
            return Window(start=index, end=index + 1, media=(_draw(page, size_px),))
    except PdfiumError:
        return Window(start=index, end=index + 1, error=_broken())


def _draw(page: PdfPage, size_px: _Size) -> Frames:
    width_px, height_px = size_px
    with closing(PdfBitmap.new_native(width_px, height_px, raw.FPDFBitmap_BGR)) as bitmap:
        bitmap.fill_rect(_WHITE, 0, 0, width_px, height_px)
        place = (0, 0, width_px, height_px, 0)
        raw.FPDF_RenderPageBitmap(bitmap, page, *place, _FLAGS)
        raw.FPDF_FFLDraw(page.formenv, bitmap, page, *place, _FLAGS)  # the fields of forms
        rgb = bitmap.to_numpy().copy()  # [H, W, 3]; the bitmap's own memory is freed on leaving
    width_pt, height_pt = page.get_size()
    facts = MediaFacts(
        width_px=round(width_pt),
        height_px=round(height_pt),
        codec="pdf",
        rotation=page.get_rotation(),
    )
    return Frames(rgb=rgb[np.newaxis], timestamps_s=np.zeros(1), facts=facts)


def _broken() -> MediaError:
    return MediaError(ErrorCode.MEDIA_CORRUPT, "the page cannot be read")


class _File:
    """The file as PDFium sees it. It keeps the error of a failed read, which PDFium would drop."""

    def __init__(self, source: bytes | BinaryIO) -> None:
        self._file = io.BytesIO(source) if isinstance(source, bytes) else source
        self._error: OSError | None = None
        self.num_bytes = self._file.seek(0, io.SEEK_END)
        self.access = raw.FPDF_FILEACCESS(m_FileLen=self.num_bytes)
        self.access.m_GetBlock = type(self.access.m_GetBlock)(self._read)

    def check(self) -> None:
        """Raise the error of a failed read, if there was one, as a `MediaError`."""
        if self._error is not None:
            message = f"reading failed: {self._error}"
            raise MediaError(ErrorCode.MEDIA_UNREADABLE, message) from self._error

    def _read(self, _: object, offset: int, target: Any, num_bytes: int) -> int:
        """Copy bytes of the file to a pointer; return 1, or 0 if that failed, as PDFium wants."""
        try:
            self._file.seek(offset)
            while num_bytes:
                block = self._file.read(num_bytes)
                if not block:
                    return 0
                ctypes.memmove(target, block, len(block))
                target = ctypes.byref(target.contents, len(block))
                num_bytes -= len(block)
        except OSError as error:
            self._error = error
            return 0
        return 1
