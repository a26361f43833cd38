"""From a stored frame to the picture that a player shows: upright, square pixels, 8-bit RGB."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import av
import numpy as np
from av.buffer import Buffer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

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


@dataclass(frozen=True, kw_only=True)
class FrameRequest:
    """Which frames of a video or picture to take, at which size, and on which background."""

    sampling: FrameSampling
    fit: Fit | None = None  # None keeps the displayed size
    # What shows through a picture, as #rrggbb; None takes the colours under the transparency.
    background: str | None = WHITE


@dataclass(frozen=True)
class DisplayTransform:
    """How to draw a stored frame: resize it, mirror it, then turn it."""

    width_px: int  # of the result
    height_px: int
    is_mirrored: bool  # left to right
    num_turns: int  # quarter turns counterclockwise
    displayed_width_px: int  # before `fit`
    displayed_height_px: int

    def render(self, frame: VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
        """Convert and resize a frame in one pass of swscale; [H, W, 3], maybe a strided view."""
        size = (self.width_px, self.height_px)
        width_px, height_px = size[::-1] if self.num_turns % 2 else size
        format_name = "rgb48le" if is_hdr(frame) else "rgb24"
        converted = reformatter.reformat(
            frame, width_px, height_px, format_name, interpolation="BICUBIC", **_ONE_THREAD
        )
        pixels = converted.to_ndarray()
        if format_name == "rgb48le":
            rgb = to_sdr(pixels.astype(np.uint16, copy=False), frame.color_trc)
        else:
            rgb = pixels.astype(np.uint8, copy=False)
        return np.rot90(rgb[:, ::-1] if self.is_mirrored else rgb, self.num_turns)


def display_transform(
    frame: VideoFrame, stream: VideoStream, fit: Fit | None, num_frames: int
) -> DisplayTransform:
    """Compute the transform for `num_frames` frames of a stream from the first of them.

    Raises:
        ValueError: `fit` returned a size without pixels.
    """
    is_mirrored, num_turns = _orientation(frame)
    width_px, height_px = frame.width, frame.height
    aspect = stream.sample_aspect_ratio
    if aspect and 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
        # Stretch one side, never shrink the other, so that no detail is lost here.
        width_px = round(width_px * max(aspect, 1))
        height_px = round(height_px / min(aspect, 1))
    if num_turns % 2:
        width_px, height_px = height_px, width_px
    displayed_px = fitted_px = width_px, height_px
    if fit is not None:
        fitted_px = fit(width_px, height_px, num_frames)
        if min(fitted_px) < 1:
            raise ValueError(f"fit{(*displayed_px, num_frames)} returned no size: {fitted_px}")
    return DisplayTransform(*fitted_px, is_mirrored, num_turns, *displayed_px)


def _orientation(frame: VideoFrame) -> tuple[bool, int]:
    """Whether the display matrix mirrors, and its quarter turns counterclockwise after that."""
    if frame.rotation == 0:
        return False, 0
    # The matrix has the rows (a, b, u), (c, d, v), ...; it shows the point (x, y) at
    # (ax + cy, bx + dy), with y growing downwards, as libavutil/display.h says.
    side_data = cast(Mapping[str, Buffer], frame.side_data)
    matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), dtype=np.int32)  # [9]
    a, b, _, c, d = matrix[:5].tolist()
    is_mirrored = a * d < b * c
    degrees = math.degrees(math.atan2(-b, a)) + (180 if is_mirrored else 0)
    return is_mirrored, round(degrees / 90) % 4
