"""From a stored frame to the picture that a player shows: upright, square pixels, 8-bit RGB."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.media.containers.crop import Crop
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.hdr import is_hdr, to_sdr

WHITE = "#ffffff"
# Maps a displayed width and height and a number of frames to the final width and height.
Fit = Callable[[int, int, int], tuple[int, int]]

# By default swscale starts one thread per CPU, and each decoding process would do so. PyAV has had
# the option since 17.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
# A pixel aspect ratio beyond this factor is a broken header, and is ignored.
_MAX_PIXEL_ASPECT = 4


def _unlisted(kind: type[Type], value: object) -> Type:
    """Make a member for a kind of side data that FFmpeg knows and PyAV does not list."""
    member = object.__new__(kind)
    member._name_, member._value_ = f"UNLISTED_{value}", value
    return member


# Without this, PyAV raises for a frame with side data of such a kind, EXIF data for example, and
# its display matrix could not be read.
Type._missing_ = classmethod(_unlisted)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True, kw_only=True)
class FrameRequest:
    """Which frames of a video or picture to take, at which size, and on which background."""

    sampling: FrameSampling
    fit: Fit | None = None  # None keeps the displayed size
    # What shows through a picture, as #rrggbb; None takes the colours under the transparency.
    background: str | None = WHITE


@dataclass(frozen=True)
class DisplayTransform:
    """How to draw a stored frame: crop it, resize it, mirror it, turn it, and add black bars."""

    width_px: int  # of the result
    height_px: int
    picture_px: tuple[int, int]  # width and height in the middle of the result; the rest is black
    crop: Crop
    is_mirrored: bool  # left to right
    num_turns: int  # quarter turns counterclockwise
    displayed_width_px: int  # before `fit`
    displayed_height_px: int

    def render(self, frame: VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
        """Convert and resize a frame in one pass of swscale; [H, W, 3], maybe a strided view."""
        transfer = frame.color_trc
        format_name = "rgb48le" if is_hdr(frame) else "rgb24"
        if self.crop.leaves_pixels(frame.width, frame.height):
            frame = _cropped(frame, self.crop)
        width_px, height_px = self.picture_px[::-1] if self.num_turns % 2 else self.picture_px
        converted = reformatter.reformat(
            frame, width_px, height_px, format_name, interpolation="BICUBIC", **_ONE_THREAD
        )
        pixels = converted.to_ndarray()
        if format_name == "rgb48le":
            rgb = to_sdr(pixels.astype(np.uint16, copy=False), transfer)
        else:
            rgb = pixels.astype(np.uint8, copy=False)
        return self._with_bars(np.rot90(rgb[:, ::-1] if self.is_mirrored else rgb, self.num_turns))

    def resized_for(self, frame: VideoFrame, stream: VideoStream, crop: Crop) -> "DisplayTransform":
        """The transform for a later frame, which may have another size or orientation.

        Where its shape differs, it is shown whole and not stretched, with black bars at two sides.
        """
        is_mirrored, num_turns = _orientation(frame)
        shown_px = _displayed_px(frame, stream, crop, num_turns)
        return replace(
            self,
            picture_px=_fit_within(shown_px, (self.width_px, self.height_px)),
            crop=crop,
            is_mirrored=is_mirrored,
            num_turns=num_turns,
        )

    def _with_bars(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.picture_px == (self.width_px, self.height_px):
            return rgb
        height_px, width_px = rgb.shape[:2]
        left, top = (self.width_px - width_px) // 2, (self.height_px - height_px) // 2
        whole = np.zeros((self.height_px, self.width_px, 3), dtype=np.uint8)
        whole[top : top + height_px, left : left + width_px] = rgb
        return whole


def display_transform(
    frame: VideoFrame, stream: VideoStream, crop: Crop, fit: Fit | None, num_frames: int
) -> DisplayTransform:
    """Compute the transform for `num_frames` frames of a stream from the first of them.

    Raises:
        ValueError: `fit` returned a size without pixels.
    """
    is_mirrored, num_turns = _orientation(frame)
    displayed_px = fitted_px = _displayed_px(frame, stream, crop, num_turns)
    if fit is not None:
        fitted_px = fit(*displayed_px, num_frames)
        if min(fitted_px) < 1:
            raise ValueError(f"fit{(*displayed_px, num_frames)} returned no size: {fitted_px}")
    return DisplayTransform(*fitted_px, fitted_px, crop, is_mirrored, num_turns, *displayed_px)


def _displayed_px(
    frame: VideoFrame, stream: VideoStream, crop: Crop, num_turns: int
) -> tuple[int, int]:
    """Width and height of a frame as it is displayed."""
    width_px, height_px = frame.width, frame.height
    if crop.leaves_pixels(width_px, height_px):
        width_px -= crop.left + crop.right
        height_px -= crop.top + crop.bottom
    aspect = stream.sample_aspect_ratio
    if aspect and 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        # Stretch one side, never shrink the other, so that no detail is lost here.
        width_px = round(width_px * max(aspect, 1))
        height_px = round(height_px / min(aspect, 1))
    return (height_px, width_px) if num_turns % 2 else (width_px, height_px)


def _fit_within(shown_px: tuple[int, int], whole_px: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the shape `shown_px` within `whole_px`."""
    scale = min(whole / shown for whole, shown in zip(whole_px, shown_px, strict=True))
    width_px, height_px = (
        # One pixel too few comes from rounding to whole pixels, and is no other shape.
        whole if abs(scale * shown - whole) <= 1 else max(1, round(scale * shown))
        for whole, shown in zip(whole_px, shown_px, strict=True)
    )
    return width_px, height_px


def _cropped(frame: VideoFrame, crop: Crop) -> VideoFrame:
    """The part of a frame that is left, in its stored format."""
    width_px = frame.width - crop.left - crop.right
    height_px = frame.height - crop.top - crop.bottom
    graph = Graph()
    if _ONE_THREAD:
        graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    # `exact` keeps odd numbers, which would be rounded where colours are stored at half the size.
    cut = graph.add("crop", f"{width_px}:{height_px}:{crop.left}:{crop.top}:exact=1")
    graph.link_nodes(source, cut, graph.add("buffersink")).configure()
    graph.push(frame)
    return cast(VideoFrame, graph.pull())


def _orientation(frame: VideoFrame) -> tuple[bool, int]:
    """Whether the display matrix mirrors, and its quarter turns counterclockwise after that."""
    # The matrix has the rows (a, b, u), (c, d, v), ...; it shows the point (x, y) at
    # (ax + cy, bx + dy), with y growing downwards, as libavutil/display.h says.
    side_data = cast(Iterable[SideData], frame.side_data)
    matrix = next((each for each in side_data if each.type == Type.DISPLAYMATRIX), None)
    if matrix is None:
        return False, 0
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    is_mirrored = a * d < b * c
    degrees = math.degrees(math.atan2(-b, a)) + (180 if is_mirrored else 0)
    return is_mirrored, round(degrees / 90) % 4
