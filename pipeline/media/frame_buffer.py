"""`FrameBuffer`: the wanted frames of a video at their final sizes, one array for each request."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.media.containers.opening import OpenVideo
from pipeline.media.display import DisplayTransform, Fit, display_transform
from pipeline.media.limits import MediaLimits

# Pixels [I, H, W, 3], the times of the frames [I] in seconds, and how they were drawn.
Contents = tuple[NDArray[np.uint8], NDArray[np.float64], DisplayTransform]


@dataclass
class _RequestBuffer:
    """The frames of one request. The first one sets the size of all, which share one array."""

    wanted: frozenset[int]  # pts
    fit: Fit | None
    transform: DisplayTransform | None = None  # None until the first frame
    pixels: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    times_s: list[float] = field(default_factory=list)


class FrameBuffer:
    """Holds the wanted frames of one video; a request is the pts of its frames, and their fit."""

    def __init__(
        self,
        video: OpenVideo,
        requests: Sequence[tuple[Collection[int], Fit | None]],
        limits: MediaLimits,
    ) -> None:
        self.num_errors = 0  # packets and frames that were damaged
        self.is_interlaced = False
        self._stream, self._crop = video.stream, video.crop
        self._limits = limits
        self._buffers = [_RequestBuffer(frozenset(wanted), fit) for wanted, fit in requests]
        self._num_bytes = 0
        # Each reformatter keeps the swscale filters of one size for the next frame.
        self._reformatters: dict[DisplayTransform, VideoReformatter] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no frame was added."""
        return not any(buffer.times_s for buffer in self._buffers)

    def add(self, frame: VideoFrame, time_s: float, stands_for: Collection[int]) -> None:
        """Add a frame to each request that wants one of the pts that it stands for.

        The frame is converted and resized once for each size, however many requests take it.
        `time_s` is when it appears, in seconds from the first frame of the stream.

        Raises:
            MediaError: the frame, or all frames together, are over a limit.
        """
        self._limits.check_pixels(frame.width, frame.height)
        rendered: dict[DisplayTransform, NDArray[np.uint8]] = {}
        for buffer in self._buffers:
            if buffer.wanted.isdisjoint(stands_for):
                continue
            first = buffer.transform or self._allocate(buffer, frame)
            transform = first.resized_for(frame, self._stream, self._crop)
            if transform not in rendered:
                reformatter = self._reformatters.setdefault(transform, VideoReformatter())
                rendered[transform] = transform.render(frame, reformatter)
            buffer.pixels[len(buffer.times_s)] = rendered[transform]
            buffer.times_s.append(time_s)
        self.is_interlaced |= bool(frame.interlaced_frame)

    def contents(self) -> Iterator[Contents | None]:
        """Yield the contents of each request; None if no frame was added to it."""
        for buffer in self._buffers:
            if buffer.transform is None:
                yield None
            else:
                pixels = buffer.pixels[: len(buffer.times_s)]
                yield pixels, np.array(buffer.times_s), buffer.transform

    def _allocate(self, buffer: _RequestBuffer, frame: VideoFrame) -> DisplayTransform:
        """Allocate the pixels of a request, whose size follows from its first frame."""
        num_frames = len(buffer.wanted)
        transform = display_transform(frame, self._stream, self._crop, buffer.fit, num_frames)
        width_px, height_px = transform.width_px, transform.height_px
        self._limits.check_pixels(width_px, height_px)
        self._num_bytes = self._limits.check_rgb(num_frames, width_px, height_px, self._num_bytes)
        buffer.pixels = np.empty((num_frames, height_px, width_px, 3), dtype=np.uint8)
        buffer.transform = transform
        return transform
