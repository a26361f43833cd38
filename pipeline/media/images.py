"""Untrusted pictures (JPEG, PNG, WebP, GIF, BMP, TIFF) -> `Frames`; Pillow tries no other format.

An animated picture is a short video. The pages of a TIFF and the images of a multi-picture JPEG
have no times, so the first one stands for the file, unless the pages themselves are wanted.
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
from pipeline.media.windows import Span, TimeWindows, Window, choose_by_window
from pipeline.status import ErrorCode

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_ANIMATED = ("GIF", "WEBP", "PNG")
_DEFAULT_FRAME_MS = 100.0  # what browsers take for a frame without a duration
# What Pillow raises for damaged files, besides OSError.
_DAMAGE = (ValueError, TypeError, SyntaxError, IndexError, KeyError, EOFError, ArithmeticError)


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a picture of a format on the list."""
    return head.startswith(_HEADS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def decode_picture(
    source: bytes | BinaryIO,
    requests: Sequence[FrameRequest],
    *,
    windows: TimeWindows | None,
    span_s: Span,
    limits: MediaLimits,
) -> list[Window]:
    """Take frames out of a picture; a picture that is not animated is one frame without duration.

    Frames are turned as the EXIF data say, resized as the checkpoint's processor does, and lose
    their alpha channel. Arguments, result and errors are those of `decode_video`.
    """
    with _open(source, limits) as picture:
        ends_s = _ends(picture, limits)
        times_s = np.append(0.0, ends_s[:-1])
        is_keyframe = np.ones(len(times_s), dtype=np.bool_)
        choices = choose_by_window(
            times_s, float(ends_s[-1]), is_keyframe, requests, windows, span_s, limits
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
    """Decode each page of a TIFF as a window; of any other file, the first picture is its one page.

    Raises:
        MediaError: the picture cannot be used; `code` says why.
    """
    with _open(source, limits) as picture:
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
def _open(source: bytes | BinaryIO, limits: MediaLimits) -> Iterator[Image.Image]:
    """Open a picture within the limits; what fails inside the `with` becomes a `MediaError`."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        limits.check_num_bytes(file.seek(0, io.SEEK_END))
        file.seek(0)
        with warnings.catch_warnings():
            # Pillow warns of damage and of large pictures; our own limits are stricter.
            warnings.simplefilter("ignore")
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
    """Draw the pages of each choice at their final size, [I, H, W, 3]; decode each page once.

    A choice is page numbers and how they are fitted. `num_bytes` is what other frames of the row
    take already.
    """
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
    width_px, height_px = picture.size[::-1] if orientation in (5, 6, 7, 8) else picture.size
    return MediaFacts(
        duration_s=float(ends_s[-1]),
        fps=len(ends_s) / ends_s[-1] if ends_s[-1] > 0 else 0.0,
        width_px=width_px,
        height_px=height_px,
        codec=str(picture.format).lower(),
        rotation={3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(orientation, 0),
        is_vfr=bool((np.diff(np.append(0.0, ends_s[:-1]), n=2) != 0).any()),
    )


def _num_pages(picture: Image.Image, limits: MediaLimits) -> int:
    num_pages = getattr(picture, "n_frames", 1)
    if num_pages > limits.max_pages:
        refuse(f"the picture has {num_pages} pages", limits.max_pages, "--max-pages")
    return num_pages


def _ends(picture: Image.Image, limits: MediaLimits) -> NDArray[np.float64]:
    """[N] when each frame of an animation ends, in seconds; [1] with 0 for other pictures."""
    num_pages = _num_pages(picture, limits)
    if num_pages == 1 or picture.format not in _ANIMATED:
        return np.zeros(1)
    durations_ms = []
    for index in range(num_pages):
        picture.seek(index)
        picture.load()  # WebP gives the duration of a frame only once it is loaded
        durations_ms.append(float(picture.info.get("duration") or _DEFAULT_FRAME_MS))
    picture.seek(0)
    return np.cumsum(durations_ms) / 1000.0


def _upright(picture: Image.Image) -> Image.Image:
    """The current page as 8-bit RGB, turned as it is displayed."""
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip them to 8 bits
        grey = np.asarray(upright).clip(0, 65535) >> 8
        upright = Image.fromarray(grey.astype(np.uint8))
    if upright.mode == "P":  # Pillow warns if a palette's transparency is dropped in one step
        upright = upright.convert("RGBA")
    return upright.convert("RGB")


def _resized(rgb: Image.Image, width_px: int, height_px: int) -> NDArray[np.uint8]:
    if rgb.size != (width_px, height_px):
        rgb = rgb.resize((width_px, height_px), Image.Resampling.BICUBIC)
    return np.asarray(rgb)
