"""Untrusted pictures -> `Frames`: the formats of `formats.py`, still or animated."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import cycle
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from model.inputs.images import on_background
from pipeline.media.display import FrameRequest
from pipeline.media.frames import Frames, MediaFacts
from pipeline.media.limits import MediaLimits
from pipeline.media.pictures.formats import open_picture
from pipeline.media.pictures.pages import frame_ends_s, shown_pages
from pipeline.media.pictures.upright import Upright, upright
from pipeline.media.windows import Span, TimeWindows, Window, choose_by_window

_Draw = Callable[[int], Upright]  # decodes a page by its number
_EQUAL_S = 1e-6  # times that differ by less are the same


def decode_picture(
    source: bytes | BinaryIO,
    requests: Sequence[FrameRequest],
    *,
    windows: TimeWindows | None,
    span_s: Span,
    limits: MediaLimits,
) -> list[Window]:
    """Take frames out of a picture; a picture that is not animated is one frame without duration.

    Frames are upright, in sRGB, on the background of the request, and resized as the checkpoint's
    processor does. Arguments, result and errors are those of `decode_video`.
    """
    with open_picture(source, limits) as picture:
        pages = shown_pages(picture, limits)
        ends_s = frame_ends_s(picture, pages)
        times_s = np.append(0.0, ends_s[:-1])
        is_keyframe = np.ones(len(times_s), dtype=np.bool_)
        choices = choose_by_window(
            times_s, float(ends_s[-1]), is_keyframe, requests, windows, span_s, limits
        )
        draw = _drawer(picture, limits)
        facts = _facts(picture, draw(pages[0]), ends_s)
        chosen = [
            ([pages[position] for position in choice.positions], request)
            for choice, request in zip(choices, cycle(requests), strict=False)
        ]
        return [
            choice.window(
                Frames(rgb=rgb, timestamps_s=choice.times_s, facts=facts) if len(rgb) else None,
                is_cut=False,
            )
            for choice, rgb in zip(choices, _render(draw, facts, chosen, limits), strict=True)
        ]


def decode_pages(
    source: bytes | BinaryIO, request: FrameRequest, *, limits: MediaLimits
) -> list[Window]:
    """Decode each page of a TIFF as a window; of any other file, the first picture is its one page.

    Raises:
        MediaError: the picture cannot be used; `code` says why.
    """
    with open_picture(source, limits) as picture:
        pages = shown_pages(picture, limits)
        draw = _drawer(picture, limits)
        windows: list[Window] = []
        num_bytes = 0
        for number, page in enumerate(pages if picture.format == "TIFF" else pages[:1]):
            facts = _facts(picture, draw(page), np.zeros(1))
            (rgb,) = _render(draw, facts, [([page], request)], limits, num_bytes)
            num_bytes += rgb.nbytes
            frames = Frames(rgb=rgb, timestamps_s=np.zeros(1), facts=facts)
            windows.append(Window(start=number, end=number + 1, media=(frames,)))
        return windows


def _drawer(picture: ImageFile.ImageFile, limits: MediaLimits) -> _Draw:
    """Make the function that decodes a page; it keeps the last one."""

    @lru_cache(maxsize=1)
    def draw(page: int) -> Upright:
        picture.seek(page)
        limits.check_pixels(*picture.size)  # pages of a TIFF differ in size
        drawn = upright(picture)
        limits.check_pixels(*drawn.image.size)  # tiles of a HEIC can be larger than it says
        return drawn

    return draw


def _render(
    draw: _Draw,
    facts: MediaFacts,
    chosen: Sequence[tuple[list[int], FrameRequest]],
    limits: MediaLimits,
    num_bytes: int = 0,
) -> list[NDArray[np.uint8]]:
    """Draw the pages of each request at their final size, [I, H, W, 3]; decode each page once.

    `num_bytes` is what other frames of the row take already.
    """
    pixels: list[NDArray[np.uint8]] = []
    for pages, request in chosen:
        size_px = (facts.width_px, facts.height_px)
        if request.fit is not None and pages:
            size_px = request.fit(*size_px, len(pages))
        num_bytes = limits.check_rgb(len(pages), *size_px, num_bytes)
        pixels.append(np.empty((len(pages), size_px[1], size_px[0], 3), dtype=np.uint8))
    for page in sorted({page for pages, _ in chosen for page in pages}):
        image = draw(page).image
        colors = {request.background for pages, request in chosen if page in pages}
        opaque = {color: on_background(image, color) for color in colors}
        for (pages, request), rgb in zip(chosen, pixels, strict=True):
            if page in pages:
                resized = _resized(opaque[request.background], rgb.shape[2], rgb.shape[1])
                rgb[pages.index(page)] = resized
    return pixels


def _resized(rgb: Image.Image, width_px: int, height_px: int) -> NDArray[np.uint8]:
    if rgb.size != (width_px, height_px):
        rgb = rgb.resize((width_px, height_px), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def _facts(picture: Image.Image, first: Upright, ends_s: NDArray[np.float64]) -> MediaFacts:
    lengths_s = np.diff(ends_s, prepend=0.0)[:-1]  # how long the last frame stays does not count
    return MediaFacts(
        duration_s=float(ends_s[-1]),
        fps=len(ends_s) / ends_s[-1] if ends_s[-1] > 0 else 0.0,
        width_px=first.image.width,
        height_px=first.image.height,
        codec=str(picture.format).lower(),
        rotation=first.rotation,
        is_vfr=bool(len(lengths_s) and np.ptp(lengths_s) > _EQUAL_S),
    )
