"""`FrameBuffer`: decoded frames at their final sizes, in one array for each request."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.media.display import Fit, View, view_of
from pipeline.media.limits import MediaLimits


@dataclass
class _RequestBuffer:
    """The frames of one shot; all have the size of the first one drawn."""

    wanted: frozenset[int]  # pts
    fit: Fit | None
    view: View | None = None
    pixels: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    seconds: list[float] = field(default_factory=list)


class FrameBuffer:
    """Room for the chosen frames of one video.

    Args:
        stream: where the frames come from.
        shots: for each the pts of its frames, and how they are fitted, as for `view_of`.
        limits: what to refuse.
    """

    def __init__(
        self,
        stream: VideoStream,
        shots: Sequence[tuple[Collection[int], Fit | None]],
        limits: MediaLimits,
    ) -> None:
        self.num_errors = 0  # packets and frames that were damaged
        self.is_interlaced = False
        self._stream = stream
        self._limits = limits
        self._sheets = [_RequestBuffer(frozenset(wanted), fit) for wanted, fit in shots]
        self._num_bytes = 0
        self._reformatters: dict[View, VideoReformatter] = {}  # each keeps the filters of a size

    @property
    def is_empty(self) -> bool:
        """Whether nothing was drawn."""
        return not any(sheet.seconds for sheet in self._sheets)

    def draw(self, frame: VideoFrame, time_s: float, stands_for: Collection[int]) -> None:
        """Add a frame that appears at `time_s` to each shot that wants one of the pts.

        It is converted and resized in one pass, once for each size.

        Raises:
            MediaError: it is over a limit.
        """
        self._limits.check_pixels(frame.width, frame.height)
        rendered: dict[View, NDArray[np.uint8]] = {}
        for sheet in self._sheets:
            if sheet.wanted.isdisjoint(stands_for):
                continue
            view = sheet.view or self._open(sheet, frame)
            if view not in rendered:
                reformatter = self._reformatters.setdefault(view, VideoReformatter())
                rendered[view] = view.render(frame, reformatter)
            sheet.pixels[len(sheet.seconds)] = rendered[view]
            sheet.seconds.append(time_s)
        self.is_interlaced |= bool(frame.interlaced_frame)

    def finish(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float64], View] | None]:
        """What was drawn for each shot: pixels [I, H, W, 3], times [I], view; None for nothing."""
        for sheet in self._sheets:
            if sheet.view is None:
                yield None
            else:
                pixels = sheet.pixels[: len(sheet.seconds)]
                yield pixels, np.array(sheet.seconds), sheet.view

    def _open(self, sheet: _RequestBuffer, frame: VideoFrame) -> View:
        """Make room for the frames of a shot, given the first of them."""
        num_frames = len(sheet.wanted)
        sheet.view = view = view_of(frame, self._stream, sheet.fit, num_frames)
        width_px, height_px = view.width_px, view.height_px
        self._limits.check_pixels(width_px, height_px)
        self._num_bytes = self._limits.check_rgb(num_frames, width_px, height_px, self._num_bytes)
        sheet.pixels = np.empty((num_frames, height_px, width_px, 3), dtype=np.uint8)
        return view
