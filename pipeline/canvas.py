"""`Canvas`: decoded frames drawn one by one into an array of the final size."""

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.limits import MediaLimits
from pipeline.view import Fit, View, view_of


class Canvas:
    """Room for the chosen frames of one video; all have the size of the first one drawn.

    Args:
        stream: where the frames come from.
        max_frames: how many will be drawn at most.
        fit: see `view_of`.
        limits: what to refuse.
    """

    def __init__(
        self, stream: VideoStream, max_frames: int, fit: Fit | None, limits: MediaLimits
    ) -> None:
        self.num_errors = 0  # packets and frames that were damaged
        self.is_interlaced = False
        self._stream = stream
        self._max_frames = max_frames
        self._fit = fit
        self._limits = limits
        self._reformatter = VideoReformatter()
        self._view: View | None = None
        self._pixels = np.empty(0, dtype=np.uint8)
        self._seconds: list[float] = []

    @property
    def num_drawn(self) -> int:
        """How many frames are there."""
        return len(self._seconds)

    def draw(self, frame: VideoFrame, time_s: float) -> None:
        """Add a frame that appears at `time_s`, in one pass of conversion and resize.

        Raises:
            MediaError: it is over a limit.
        """
        self._limits.check_pixels(frame.width, frame.height)
        if self._view is None:
            self._view = self._open(frame)
        self._pixels[len(self._seconds)] = self._view.render(frame, self._reformatter)
        self._seconds.append(time_s)
        self.is_interlaced |= bool(frame.interlaced_frame)

    def finish(self) -> tuple[NDArray[np.uint8], NDArray[np.float64], View]:
        """What was drawn, at least one frame: pixels [I, H, W, 3], times [I], the view."""
        assert self._view is not None
        return self._pixels[: self.num_drawn], np.array(self._seconds), self._view

    def _open(self, frame: VideoFrame) -> View:
        view = view_of(frame, self._stream, self._fit, self._max_frames)
        width_px, height_px = view.width_px, view.height_px
        self._limits.check_pixels(width_px, height_px)
        self._limits.check_rgb(self._max_frames, width_px, height_px)
        self._pixels = np.empty((self._max_frames, height_px, width_px, 3), dtype=np.uint8)
        return view
