"""Pictures with what stands below them, as strips of JPEG thumbnails."""

import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.review_page.parts import evenly

_STRIP_PX = 1024  # of a strip of several pictures
_PICTURES_PER_STRIP = 8
_JPEG_QUALITY = 70

Picture = tuple[NDArray[np.uint8], str]  # [H, W, 3], and what stands below it


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Some frames of one size side by side in one JPEG."""

    jpeg: bytes
    marks: tuple[str, ...]  # below each frame: its second, or its page
    width_px: int  # of one frame


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What one part of a row showed, or some of it."""

    strips: tuple[Strip, ...]
    num_frames: int  # or pages


@dataclass(frozen=True, kw_only=True)
class Shots:
    """The sights of one row, one for each of its parts; or a note why there are none or others."""

    sights: tuple[Sight, ...] = ()
    note: str | None = None

    @property
    def num_bytes(self) -> int:
        """Of all thumbnails."""
        return sum(len(strip.jpeg) for sight in self.sights for strip in sight.strips)


def make_sight(pictures: Iterable[Picture], most: int) -> Sight:
    """Thumbnails of a part; of more than `most`, so many evenly."""
    found = list(pictures)
    return Sight(strips=make_strips(evenly(found, most)), num_frames=len(found))


def make_strips(pictures: Sequence[Picture]) -> tuple[Strip, ...]:
    """Pictures as JPEG strips; those of one strip have one size."""
    strips = []
    for (_, width_px, _), same in itertools.groupby(pictures, lambda picture: picture[0].shape):
        row = list(same)
        step = max(1, min(_PICTURES_PER_STRIP, _STRIP_PX // width_px))
        for first in range(0, len(row), step):
            here = row[first : first + step]
            file = io.BytesIO()
            Image.fromarray(np.concatenate([rgb for rgb, _ in here], axis=1)).save(
                file, "JPEG", quality=_JPEG_QUALITY, optimize=True
            )
            marks = tuple(mark for _, mark in here)
            strips.append(Strip(jpeg=file.getvalue(), marks=marks, width_px=width_px))
    return tuple(strips)
