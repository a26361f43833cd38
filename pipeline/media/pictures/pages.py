"""Which frames or pages of a picture file are shown, and until when.

An animated picture is a short video. The pages of a TIFF and the images of a multi-picture JPEG or
HEIC have no times, so one of them stands for the file, unless the pages themselves are wanted.
"""

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from pipeline.media.limits import MediaError, MediaLimits, refuse
from pipeline.status import ErrorCode

_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_DEFAULT_FRAME_MS = 100.0  # what browsers take for a frame without a duration
_NEW_SUBFILE_TYPE, _REDUCED, _MASK = 254, 1, 4  # TIFF 6.0, section 8


def shown_pages(picture: Image.Image, limits: MediaLimits) -> list[int]:
    """Return the numbers of the frames of an animation, or of the pages of a TIFF.

    The hidden default image of an animated PNG is no frame; previews and masks in a TIFF are no
    pages. A picture of any other format is one page.

    Raises:
        MediaError: there are too many, or a TIFF has previews only.
    """
    num_pages = getattr(picture, "n_frames", 1)
    if num_pages > limits.max_pages:
        refuse(f"the picture has {num_pages} pages", limits.max_pages, "--max-pages")
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return _tiff_pages(picture, num_pages)
    if picture.format in _ANIMATED:
        return list(range(1 if getattr(picture, "default_image", False) else 0, num_pages))
    return [picture.tell()]  # a HEIC opens at its primary image


def _tiff_pages(picture: TiffImagePlugin.TiffImageFile, num_pages: int) -> list[int]:
    pages: list[int] = []
    for page in range(num_pages):
        with suppress(SyntaxError):  # a page of an unknown kind fails when it is drawn
            picture.seek(page)
        if not picture.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & (_REDUCED | _MASK):
            pages.append(page)
    if not pages:
        message = "the TIFF has previews only, as a camera's raw file has; convert it to JPEG"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message)
    return pages


def frame_ends_s(picture: Image.Image, pages: list[int]) -> NDArray[np.float64]:
    """[N] when each frame of an animation ends, in seconds; [1] with 0 for other pictures."""
    if len(pages) == 1 or picture.format not in _ANIMATED:
        return np.zeros(1)
    durations_ms: list[float] = []
    for page in pages:
        picture.seek(page)
        picture.load()  # WebP and AVIF give the duration of a frame only once it is loaded
        durations_ms.append(float(picture.info.get("duration") or _DEFAULT_FRAME_MS))
    return np.cumsum(durations_ms) / 1000.0
