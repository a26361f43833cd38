"""Untrusted pictures (JPEG, PNG, WebP, GIF, BMP, TIFF) -> `Frames`; Pillow tries no other format.

An animated picture is a video of few frames; a page of a TIFF or a part of a multi-picture JPEG is
not shown at a time, so the first one stands for the file, unless pages are what is wanted.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from pipeline.media.display import Fit, FrameRequest
from pipeline.media.frames import Frames, MediaFacts
from pipeline.media.limits import MediaError, MediaLimits, refuse
from pipeline.media.windows import Span, TimeWindows, Window, choose
from pipeline.status import ErrorCode

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_ANIMATED = ("GIF", "WEBP", "PNG")
_USUAL_FRAME_MS = 100.0  # what browsers show of an animation that names no time
# What Pillow raises for damage, beside OSError.
_DAMAGE = (ValueError, TypeError, SyntaxError, IndexError, KeyError, EOFError, ArithmeticError)


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so is a picture of a format on the list."""
    return head.startswith(_HEADS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def decode_picture(
    source: bytes | BinaryIO,
    shots: Sequence[FrameRequest],
    *,
    windows: TimeWindows | None,
    span_s: Span,
    limits: MediaLimits,
) -> list[Window]:
    """As `decode_video`; a picture that is not animated is one frame without duration.

    Turned as its EXIF data say and resized as the checkpoint's processor does; alpha is dropped.

    Raises:
        MediaError: it cannot be used; `code` says why.
        MemoryError: there is not enough.
    """
    with _opened(source, limits) as picture:
        ends_s = _ends(picture, limits)
        times_s = np.append(0.0, ends_s[:-1])
        choices = choose(
            times_s,
            float(ends_s[-1]),
            np.ones(len(times_s), dtype=np.bool_),
            shots,
            windows=windows,
            span_s=span_s,
            limits=limits,
        )
        pages = [(choice.positions.tolist(), choice.fit) for choice in choices]
        facts = _facts(picture, ends_s)
        return [
            choice.window(
                Frames(rgb=rgb, timestamps_s=choice.times_s, facts=facts) if len(rgb) else None,
                is_cut=False,
            )
            for choice, rgb in zip(choices, _draw(picture, facts, pages, limits), strict=True)
        ]


def decode_pages(source: bytes | BinaryIO, *, fit: Fit | None, limits: MediaLimits) -> list[Window]:
    """Each page of a TIFF, or the first picture of any other file, as a window of its own.

    Raises:
        MediaError: it cannot be used; `code` says why.
        MemoryError: there is not enough.
    """
    with _opened(source, limits) as picture:
        windows: list[Window] = []
        num_bytes = 0
        for page in range(_num_pages(picture, limits) if picture.format == "TIFF" else 1):
            picture.seek(page)
            limits.check_pixels(*picture.size)
            facts = _facts(picture, np.zeros(1))
            (rgb,) = _draw(picture, facts, [([page], fit)], limits, num_bytes)
            num_bytes += rgb.nbytes
            frames = Frames(rgb=rgb, timestamps_s=np.zeros(1), facts=facts)
            windows.append(Window(start=page, end=page + 1, media=(frames,)))
        return windows


@contextmanager
def _opened(source: bytes | BinaryIO, limits: MediaLimits) -> Iterator[Image.Image]:
    """An open picture within the limits; what goes wrong in the `with` is a `MediaError`."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        limits.check_num_bytes(file.seek(0, io.SEEK_END))
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage; our own limits are stricter than Pillow's
            with Image.open(file, formats=_FORMATS) as picture:
                limits.check_pixels(*picture.size)
                yield picture
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(ErrorCode.MEDIA_TOO_LARGE, f"{error} (--max-pixels)") from error
    except (OSError, *_DAMAGE) as error:  # UnidentifiedImageError is an OSError
        raise MediaError(ErrorCode.MEDIA_CORRUPT, f"the picture cannot be read: {error}") from error


def _draw(
    picture: Image.Image,
    facts: MediaFacts,
    chosen: Sequence[tuple[list[int], Fit | None]],
    limits: MediaLimits,
    num_bytes: int = 0,
) -> list[NDArray[np.uint8]]:
    """[I, H, W, 3] of each choice of pages; `num_bytes` are taken already."""
    pixels: list[NDArray[np.uint8]] = []
    for pages, fit in chosen:
        size_px = (facts.width_px, facts.height_px)
        if fit is not None and pages:
            size_px = fit(*size_px, len(pages))
        num_bytes = limits.check_rgb(len(pages), *size_px, num_bytes)
        pixels.append(np.empty((len(pages), size_px[1], size_px[0], 3), dtype=np.uint8))
    for page in sorted({page for pages, _ in chosen for page in pages}):
        picture.seek(page)
        upright = _upright(picture)
        for (pages, _), rgb in zip(chosen, pixels, strict=True):
            if page in pages:
                rgb[pages.index(page)] = _resized(upright, rgb.shape[2], rgb.shape[1])
    return pixels


def _facts(picture: Image.Image, ends_s: NDArray[np.float64]) -> MediaFacts:
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    width_px, height_px = picture.size
    if orientation in (5, 6, 7, 8):
        width_px, height_px = height_px, width_px
    return MediaFacts(
        duration_s=float(ends_s[-1]),
        fps=len(ends_s) / ends_s[-1] if ends_s[-1] > 0 else 0.0,
        width_px=width_px,
        height_px=height_px,
        codec=str(picture.format).lower(),
        rotation={3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(orientation, 0),
        is_vfr=bool((np.diff(np.append(0.0, ends_s[:-1]), n=2) != 0).any()),
        is_interlaced=False,
        num_decode_errors=0,
    )


def _num_pages(picture: Image.Image, limits: MediaLimits) -> int:
    num_pages = getattr(picture, "n_frames", 1)
    if num_pages > limits.max_pages:
        refuse(f"the picture has {num_pages} pages", limits.max_pages, "--max-pages")
    return num_pages


def _ends(picture: Image.Image, limits: MediaLimits) -> NDArray[np.float64]:
    """[N] when each picture of an animation goes; [1] at 0 for others."""
    num_pages = _num_pages(picture, limits)
    if num_pages == 1 or picture.format not in _ANIMATED:
        return np.zeros(1)
    durations_ms = []
    for index in range(num_pages):
        picture.seek(index)
        picture.load()  # WebP tells the duration only now
        durations_ms.append(float(picture.info.get("duration") or _USUAL_FRAME_MS))
    picture.seek(0)
    return np.cumsum(durations_ms) / 1000.0


def _upright(picture: Image.Image) -> Image.Image:
    """One page as RGB, turned as it is shown."""
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):  # 16 bits a pixel
        grey = np.asarray(upright).clip(0, 65535) >> 8
        upright = Image.fromarray(grey.astype(np.uint8))
    if upright.mode == "P":  # Pillow warns when transparency is dropped in one step
        upright = upright.convert("RGBA")
    return upright.convert("RGB")


def _resized(rgb: Image.Image, width_px: int, height_px: int) -> NDArray[np.uint8]:
    if rgb.size != (width_px, height_px):
        rgb = rgb.resize((width_px, height_px), Image.Resampling.BICUBIC)
    return np.asarray(rgb)
