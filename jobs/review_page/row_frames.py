"""Join frames into JPEG sprites with labels, for the sections of a row."""

import io
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.review_page.sections import evenly

_SPRITE_PX = 1024  # width of a sprite of several pictures
_PICTURES_PER_SPRITE = 8
_JPEG_QUALITY = 70

Picture = tuple[NDArray[np.uint8], str]  # [H, W, 3], and the label below it


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """Some frames of one size, side by side in one JPEG."""

    jpeg: bytes
    marks: tuple[str, ...]  # the label below each frame: its second, or its page
    width_px: int  # of one frame


@dataclass(frozen=True, kw_only=True)
class SectionFrames:
    """The frames of one section of a row, or some of them."""

    sprites: tuple[Sprite, ...]
    num_frames: int  # frames or pages of the section, also those that are left out


@dataclass(frozen=True, kw_only=True)
class RowFrames:
    """The frames of each section of a row, or a note that says why there are none or others."""

    sections: tuple[SectionFrames, ...] = ()
    note: str | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all thumbnails."""
        return sum(len(sprite.jpeg) for section in self.sections for sprite in section.sprites)


def make_section_frames(pictures: Iterable[Picture], most: int) -> SectionFrames:
    """Join pictures into sprites of one size each; of more than `most`, take `most` evenly."""
    found = list(pictures)
    sprites = []
    for (_, width_px, _), same in itertools.groupby(
        evenly(found, most), lambda picture: picture[0].shape
    ):
        row = list(same)
        step = max(1, min(_PICTURES_PER_SPRITE, _SPRITE_PX // width_px))
        for first in range(0, len(row), step):
            here = row[first : first + step]
            file = io.BytesIO()
            Image.fromarray(np.concatenate([rgb for rgb, _ in here], axis=1)).save(
                file, "JPEG", quality=_JPEG_QUALITY, optimize=True
            )
            marks = tuple(mark for _, mark in here)
            sprites.append(Sprite(jpeg=file.getvalue(), marks=marks, width_px=width_px))
    return SectionFrames(sprites=tuple(sprites), num_frames=len(found))
