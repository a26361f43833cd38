"""Make JPEGs with labels of the frames and pages of a row's sections."""

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.review_page.sections import evenly
from pipeline.media.display import Fit

_JPEG_QUALITY = 72

Picture = tuple[NDArray[np.uint8], str]  # [H, W, 3], and the label below it


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A frame or page as the page of a review shows it."""

    jpeg: bytes
    mark: str  # the label below it: its second, or its page
    width_px: int
    height_px: int
    larger: bytes | None = None  # a JPEG with more pixels than the model saw, to read it


@dataclass(frozen=True, kw_only=True)
class SectionFrames:
    """The frames of one section of a row, or some of them."""

    pictures: tuple[Thumbnail, ...]
    num_frames: int  # frames or pages of the section, also those that are left out


@dataclass(frozen=True, kw_only=True)
class RowFrames:
    """The frames of each section of a row, or a note that says why there are none or others."""

    sections: tuple[SectionFrames, ...] = ()
    note: str | None = None
    clip: bytes | None = None  # an MP4 to play

    @property
    def num_bytes(self) -> int:
        """Bytes of all pictures and of the clip."""
        pictures = [picture for section in self.sections for picture in section.pictures]
        sizes = [len(each.jpeg) + len(each.larger or b"") for each in pictures]
        return sum(sizes) + len(self.clip or b"")


def make_section_frames(
    pictures: Iterable[Picture], most: int, shrink: Fit | None = None
) -> SectionFrames:
    """Compress pictures; of more than `most`, take `most` evenly.

    With `shrink`, a picture is shown at the size that this gives, and kept larger beside it.
    """
    found = list(pictures)
    shown = tuple(_thumbnail(rgb, mark, shrink) for rgb, mark in evenly(found, most))
    return SectionFrames(pictures=shown, num_frames=len(found))


def _thumbnail(rgb: NDArray[np.uint8], mark: str, shrink: Fit | None) -> Thumbnail:
    image, larger = Image.fromarray(np.ascontiguousarray(rgb)), None
    if shrink is not None:
        size = shrink(image.width, image.height, 1)
        if size != image.size:
            larger = _jpeg(image)
            image = image.resize(size, Image.Resampling.BICUBIC)
    return Thumbnail(
        jpeg=_jpeg(image), mark=mark, width_px=image.width, height_px=image.height, larger=larger
    )


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return file.getvalue()
