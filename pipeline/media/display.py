"""How a coded picture becomes what a viewer sees: upright, with square pixels, in 8-bit RGB."""

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

# Displayed width and height and the number of frames -> width and height of the result.
Fit = Callable[[int, int, int], tuple[int, int]]

# swscale would start a thread per CPU; PyAV takes this option since 17.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


@dataclass(frozen=True, kw_only=True)
class FrameRequest:
    """Which frames of a video or picture, and at which size; one decoding gives several shots."""

    sampling: FrameSampling
    fit: Fit | None = None  # None keeps the displayed size


@dataclass(frozen=True)
class View:
    """Mirrored, then turned, then of this size."""

    width_px: int
    height_px: int
    is_mirrored: bool  # left to right
    num_turns: int  # quarter turns counterclockwise
    shown_width_px: int  # before it was fitted
    shown_height_px: int

    def render(self, frame: VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
        """Convert and resize in one pass of swscale; [H, W, 3], maybe a view of other strides."""
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


def view_of(frame: VideoFrame, stream: VideoStream, fit: Fit | None, num_frames: int) -> View:
    """The view of `num_frames` frames of a stream, given its first one.

    Raises:
        ValueError: `fit` returned no size.
    """
    is_mirrored, num_turns = _orientation(frame)
    width_px, height_px = frame.width, frame.height
    aspect = stream.sample_aspect_ratio
    if aspect and 1 / 4 <= aspect <= 4:  # more is a broken header; pixels are only ever stretched
        width_px = round(width_px * max(aspect, 1))
        height_px = round(height_px / min(aspect, 1))
    if num_turns % 2:
        width_px, height_px = height_px, width_px
    shown_px = fitted_px = width_px, height_px
    if fit is not None:
        fitted_px = fit(width_px, height_px, num_frames)
        if min(fitted_px) < 1:
            raise ValueError(f"fit{(*shown_px, num_frames)} returned no size: {fitted_px}")
    return View(*fitted_px, is_mirrored, num_turns, *shown_px)


def _orientation(frame: VideoFrame) -> tuple[bool, int]:
    """Whether the display matrix mirrors, and its quarter turns counterclockwise after that."""
    if frame.rotation == 0:
        return False, 0
    # Rows (a, b, u), (c, d, v), ...: a point (x, y) is shown at (ax + cy, bx + dy), y downwards.
    side_data = cast(Mapping[str, Buffer], frame.side_data)
    matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), dtype=np.int32)  # [9]
    a, b, _, c, d = matrix[:5].tolist()
    is_mirrored = a * d < b * c
    degrees = math.degrees(math.atan2(-b, a)) + (180 if is_mirrored else 0)
    return is_mirrored, round(degrees / 90) % 4
