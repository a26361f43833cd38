"""Encode small clips that a browser plays (`Clips`): without sound, from decoded frames.

The browser never gets a byte of the source, whose pixels come from a sandboxed process.
"""

import io
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from jobs.review_page.display_size import DisplaySize
from pipeline.media.display import FrameRequest
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.frames import Frames

_LONGER_SIDE_PX = 320
_FPS, _MAX_FRAMES = 8.0, 240  # of a span longer than 30 s, so many frames are spread over it
_CRF = 30  # small, and good enough to see a movement
_LEAST_BITS_PER_S = 4000  # the encoder refuses much less, and nothing could be seen
_TICKS_PER_S = 1000


@dataclass(frozen=True)
class Clips:
    """Makes clips of at most `max_bytes`."""

    max_bytes: int

    @property
    def request(self) -> FrameRequest:
        """The frames of which `encode` makes a clip."""
        sampling = FrameSampling(num_frames=None, fps=_FPS, max_frames=_MAX_FRAMES)
        return FrameRequest(sampling=sampling, fit=DisplaySize(_LONGER_SIDE_PX))

    def encode(self, frames: Frames) -> bytes | None:
        """Return an MP4 of the frames; None if they do not move, or do not fit.

        A clip that is too large is encoded once more, for the rate that fits.
        """
        if len(frames.rgb) < 2 or min(frames.rgb.shape[1:3]) < 2:
            return None
        times_s = frames.timestamps_s - frames.timestamps_s[0]
        clip = _encode(frames.rgb, times_s, {"crf": str(_CRF)})
        if len(clip) > self.max_bytes:
            seconds = float(times_s[-1]) + 1 / _FPS
            bits_per_s = int(0.8 * 8 * self.max_bytes / seconds)
            if bits_per_s < _LEAST_BITS_PER_S:
                return None
            rate = {name: str(bits_per_s) for name in ("b", "maxrate", "bufsize")}
            clip = _encode(frames.rgb, times_s, rate)
        return clip if len(clip) <= self.max_bytes else None


def _encode(rgb: NDArray[np.uint8], times_s: NDArray[np.float64], rate: dict[str, str]) -> bytes:
    """Encode frames [I, H, W, 3] with H.264, each shown from its own time on."""
    height, width = (side // 2 * 2 for side in rgb.shape[1:3])  # 4:2:0 needs even sides
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=_TICKS_PER_S, options={**rate, "threads": "1"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, _TICKS_PER_S)
        for picture, time_s in zip(rgb, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture[:height, :width]), format="rgb24"
            )
            frame.pts, frame.time_base = round(time_s * _TICKS_PER_S), stream.time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()
