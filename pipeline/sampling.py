"""Which frames of a video to look at: times first, then the frames on display at those times.

Both policies cut the span into equal segments and take the middle of each, so that a frame stands
for what surrounds it, and a rate equal to that of the video takes each of its frames.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """How many frames to take: a number, or so many per second of video.

    Raises:
        ValueError: not exactly one of `num_frames` and `fps` is set, or a value is out of range.
    """

    num_frames: int | None = 8
    fps: float | None = None
    max_frames: int = 128  # of `fps`; where that would be more, this many are spread over the span

    def __post_init__(self) -> None:
        if (self.num_frames is None) == (self.fps is None):
            raise ValueError(
                f"set either num_frames or fps and make the other None, got {self.num_frames=} "
                f"and {self.fps=}"
            )
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {self.num_frames}")
        if self.fps is not None and not 0.0 < self.fps < math.inf:
            raise ValueError(f"fps must be a positive number, got {self.fps}")
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")


def target_times(start_s: float, end_s: float, sampling: FrameSampling) -> NDArray[np.float64]:
    """The times to look at in `[start_s, end_s)`, rising; at least one.

    `num_frames=N` gives the mid-points of N equal segments. `fps` gives the mid-points of segments
    of 1/fps seconds from `start_s` on, those that lie in the span; a shorter span is one segment.
    """
    span_s = end_s - start_s
    num_targets = sampling.num_frames or sampling.max_frames
    segment_s = span_s / num_targets
    if sampling.fps is not None:
        # Target k lies in the span while k + 1/2 < span_s * fps; 1e-6 absorbs rounding.
        num_in_span = max(1.0, span_s * sampling.fps - 0.5 - 1e-6)
        if num_in_span <= sampling.max_frames:
            num_targets, segment_s = math.ceil(num_in_span), min(span_s, 1.0 / sampling.fps)
    return start_s + (np.arange(num_targets, dtype=np.float64) + 0.5) * segment_s


def choose_frames(
    times_s: NDArray[np.float64], start_s: float, end_s: float, sampling: FrameSampling
) -> NDArray[np.intp]:
    """The frames on display at the target times of a span.

    Args:
        times_s: [N] when each frame of the stream appears, rising, N >= 1.
        start_s: of the span.
        end_s: of the span; the last frame stays until then.
        sampling: how many.

    Returns:
        Positions in `times_s`, strictly rising: a frame that is on display at two target times is
        taken once.
    """
    # A microsecond absorbs rounding where a target is the very moment at which a frame appears.
    targets = target_times(start_s, end_s, sampling) + 1e-6
    return np.unique(np.maximum(np.searchsorted(times_s, targets, side="right") - 1, 0))


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """When each of the N >= 1 frames of a stream appears, as its packets say."""

    pts: NDArray[np.int64]  # [N] rising, in units of `time_base`
    keyframe_pts: NDArray[np.int64]  # rising; where decoding can begin
    end_pts: int  # when the last frame goes
    time_base: Fraction  # seconds
    # False where the container stores no presentation times (AVI): `pts` are then decode times,
    # and the k-th frame that decoding shows has the k-th of them.
    stores_pts: bool

    @property
    def end_s(self) -> float:
        """The duration, from the first frame on."""
        return float((self.end_pts - int(self.pts[0])) * self.time_base)

    @property
    def times_s(self) -> NDArray[np.float64]:
        """[N] when each frame appears; the first at 0."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    def jump_to(self, pts: int) -> int | None:
        """The keyframe from which the frame of `pts` can be decoded; None is the beginning."""
        before = self.keyframe_pts[self.keyframe_pts <= pts]
        return int(before[-1]) if self.stores_pts and len(before) > 1 else None


def index_frames(
    pts: NDArray[np.int64],
    durations: NDArray[np.int64],
    is_keyframe: NDArray[np.bool_],
    is_hidden: NDArray[np.bool_],
    *,
    time_base: Fraction,
    stores_pts: bool,
) -> FrameIndex | None:
    """Make the index of packets that stand in decode order, each array [number of packets].

    What comes before the first keyframe cannot be decoded and does not count, nor do hidden
    packets (those that an edit list cuts off).

    Returns:
        None if nothing is shown.
    """
    is_shown = ~is_hidden
    if is_keyframe.any():
        first = int(is_keyframe.argmax())
        is_shown &= (np.arange(len(pts)) >= first) & (pts >= pts[first])
    shown = np.unique(pts[is_shown])
    if len(shown) == 0:
        return None
    duration = int(durations[is_shown][pts[is_shown].argmax()])
    if duration <= 0:
        duration = int(np.median(np.diff(shown))) if len(shown) > 1 else 0
    return FrameIndex(
        pts=shown,
        keyframe_pts=np.unique(pts[is_keyframe]),
        end_pts=int(shown[-1]) + max(duration, 0),
        time_base=time_base,
        stores_pts=stores_pts,
    )
