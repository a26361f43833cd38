"""Which frames of a video to take: first the times, then the frames on display at those times.

`num_frames` and `fps` cut the span into equal segments and take the middle of each. A frame so
stands for what surrounds it, and a rate equal to the video's own takes each of its frames once.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """Takes a number of frames, a number per second, or the frames at given seconds.

    A ValueError says which value is out of range, or that not exactly one of the three is set.
    """

    num_frames: int | None = 8
    fps: float | None = None
    at_s: tuple[float, ...] | None = None  # from the start of the span; later ones are ignored
    max_frames: int = 128  # if `fps` gives more, this many frames are spread over the span
    # Take the last keyframe before each target time instead of the frame on display. This decodes
    # less and changes the times. Where keyframes are not known (AVI) it has no effect.
    keyframes_only: bool = False

    def __post_init__(self) -> None:
        if [self.num_frames, self.fps, self.at_s].count(None) != 2:
            raise ValueError(
                f"set either num_frames or fps or at_s and make the others None, got "
                f"{self.num_frames=}, {self.fps=} and {self.at_s=}"
            )
        if self.at_s is not None and not self.at_s:
            raise ValueError("at_s is empty; name at least one second")
        if self.at_s is not None and not all(0.0 <= at < math.inf for at in self.at_s):
            raise ValueError(f"at_s must be seconds from 0 on, got {list(self.at_s)}")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {self.num_frames}")
        if self.fps is not None and not 0.0 < self.fps < math.inf:
            raise ValueError(f"fps must be a positive number, got {self.fps}")
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {self.max_frames}")


def target_times(start_s: float, end_s: float, sampling: FrameSampling) -> NDArray[np.float64]:
    """Compute the target times in `[start_s, end_s)`, in seconds, rising.

    * `num_frames=N` gives the mid-points of N equal segments.
    * `fps` gives the mid-points of segments of 1/fps seconds from `start_s` on, as far as they lie
      in the span; a span shorter than a segment is one segment.
    * `at_s` gives those seconds after `start_s` that lie in the span, which may be none. Second 0
      always lies in it, also if the span has no length, as that of a still picture.
    """
    if sampling.at_s is not None:
        times_s = start_s + np.unique(sampling.at_s)
        return times_s[(times_s < end_s) | (times_s == start_s)]
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
    times_s: NDArray[np.float64],
    start_s: float,
    end_s: float,
    sampling: FrameSampling,
    is_keyframe: NDArray[np.bool_],
) -> NDArray[np.intp]:
    """Choose the frames on display at the target times of a span, each once.

    The N >= 1 frames of the stream appear at `times_s` [N], which rises; `is_keyframe` [N] tells
    which of them can be decoded alone. The last frame of the span stays on display until its end.
    What lies before the first frame, while only sound is heard, is left out of the span; seconds
    that are named there get the first frame. A span that ends there has no frames.

    Returns:
        Positions in `times_s`, strictly rising.
    """
    if end_s < times_s[0]:
        return np.empty(0, dtype=np.intp)
    if sampling.at_s is None:
        start_s = max(start_s, float(times_s[0]))
    candidates = np.arange(len(times_s))
    if sampling.keyframes_only and is_keyframe.any():
        candidates = np.flatnonzero(is_keyframe)
    # The microsecond absorbs rounding if a target is the very moment at which a frame appears.
    targets = target_times(start_s, end_s, sampling) + 1e-6
    chosen = np.searchsorted(times_s[candidates], targets, side="right") - 1
    return np.unique(candidates[np.maximum(chosen, 0)])
