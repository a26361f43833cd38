"""Windows: stretches of a video, or pages of a document, that the model is asked about one by one.

    seconds   |--- length_s ---|                     pages   | 1 | 2 | 3 | 4 | 5 |
                          |--- length_s ---|                 |-- window --|-- ..
                          overlap_s

A window is what one prompt shows. The windows of a video follow from its duration, which only
decoding tells, so the decoding process cuts them and decodes the frames of all in one pass. The
decoding process makes each page a window; `pipeline.prompts.pages` joins those that fit one prompt.

Letter: N frames of a stream.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.media.display import Fit, FrameRequest
from pipeline.media.frame_sampling import choose_frames
from pipeline.media.frames import Frames
from pipeline.media.limits import MediaError, MediaLimits, refuse
from pipeline.status import ErrorCode

# Start and end in seconds; None is the start or the end of the video.
Span = tuple[float | None, float | None]

_MIN_REST = 0.1  # of a window; a shorter rest at the end joins the window before it
_ROUNDING_S = 1e-6


@dataclass(frozen=True, kw_only=True)
class TimeWindows:
    """Cuts a video into windows, each with a caption; a value out of range is a ValueError."""

    length_s: float
    overlap_s: float = 0.0  # of a window with the one before it
    merge: str | None = None  # a prompt to merge the captions into one; None lists them

    def __post_init__(self) -> None:
        if not 0.0 < self.length_s < math.inf:
            raise ValueError(f"a window must last a positive number of s, got {self.length_s}")
        if not 0.0 <= self.overlap_s <= self.length_s / 2:
            allowed = f"{self.length_s:g} s may overlap by 0 to {self.length_s / 2:g} s"
            raise ValueError(f"windows of {allowed}, got {self.overlap_s:g}")
        if self.merge is not None and not self.merge.strip():
            raise ValueError("the prompt that merges captions is empty; say what is wanted")

    def cut(self, start_s: float, end_s: float, max_windows: int) -> list[tuple[float, float]]:
        """Cut a span into 1 to `max_windows` windows, as (start, end) in seconds.

        Raises:
            MediaError: there would be more.
        """
        step_s = self.length_s - self.overlap_s
        # One window, and as many more as it takes until less than a rest is left over.
        left_s = end_s - start_s - (1 + _MIN_REST) * self.length_s
        num_windows = 1 + max(0, math.ceil(left_s / step_s - _ROUNDING_S))
        if num_windows > max_windows:
            cut = f"{end_s - start_s:.0f} s are {num_windows} windows of {self.length_s:g} s"
            refuse(f"{cut}; take longer ones (--window-s)", max_windows, "--max-windows")
        starts = [start_s + number * step_s for number in range(num_windows)]
        return [(start, start + self.length_s) for start in starts[:-1]] + [(starts[-1], end_s)]


@dataclass(frozen=True, kw_only=True)
class PageWindows:
    """Cuts a document into windows of one or more pages; a number below 1 is a ValueError."""

    pages_per_prompt: int | None = 1  # at most; None means as many as the context holds
    answer_tokens: int = 4096  # that the context must have room for

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


Windows = TimeWindows | PageWindows


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one prompt shows of a row, or why that cannot be shown."""

    start: float  # in seconds; of pages, the number of pages before the window
    end: float
    media: tuple[Frames, ...] = ()  # one, or one for each page; empty if there is an error
    error: MediaError | None = None

    def moved(self, offset: float) -> "Window":
        """The same window, `offset` seconds or pages later."""
        return replace(self, start=self.start + offset, end=self.end + offset)


def clip_span(span_s: Span, end_s: float) -> tuple[float, float]:
    """Clip a row's span to a video that lasts until `end_s`.

    Raises:
        MediaError: the span is not a span, or begins after the video ends.
    """
    start, end = (0.0 if span_s[0] is None else span_s[0]), span_s[1]
    if not 0.0 <= start < math.inf or (end is not None and not end > start):
        raise MediaError(ErrorCode.BAD_SPAN, f"from {start} s to {end} s is not a span")
    if start > 0.0 and start >= end_s:
        message = f"the span begins at {start} s, the video ends at {end_s:.3f} s"
        raise MediaError(ErrorCode.NO_FRAMES, message)
    return start, end_s if end is None else min(end, end_s)


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a stream one request takes from one window."""

    span_s: tuple[float, float]  # of the window
    positions: NDArray[np.intp]  # of the frames in the stream, rising
    times_s: NDArray[np.float64]  # of the frames
    fit: Fit | None  # of the request

    def window(self, frames: Frames | None, *, is_cut: bool) -> Window:
        """Make the window of the frames that were decoded for this choice.

        Where a chosen frame is damaged, another one may stand in for it. If the window was cut out
        of a longer video, frames from outside of the window are dropped. Without frames the window
        has an error.
        """
        start_s, end_s = self.span_s
        if frames is not None and is_cut:
            frames = _between(frames, self.times_s[0], end_s)
        if frames is not None:
            return Window(start=start_s, end=end_s, media=(frames,))
        error = MediaError(ErrorCode.NO_FRAMES, "the window has no frame at the seconds")
        if len(self.times_s):
            message = f"no frame of {len(self.times_s)} of the window can be decoded"
            error = MediaError(ErrorCode.MEDIA_CORRUPT, message)
        return Window(start=start_s, end=end_s, error=error)


def choose_by_window(
    times_s: NDArray[np.float64],
    end_s: float,
    is_keyframe: NDArray[np.bool_],
    requests: Sequence[FrameRequest],
    windows: TimeWindows | None,
    span_s: Span,
    limits: MediaLimits,
) -> list[FrameChoice]:
    """Choose the frames of each request in each window of a span; without windows it is one window.

    `times_s` [N >= 1] and `is_keyframe` [N] are as for `choose_frames`; the stream ends at `end_s`.

    Returns:
        The choices of all requests for the first window, then those for the second one, and so on.

    Raises:
        MediaError: the stream has no such span, the span has no frames at the seconds asked for, or
            there would be too many windows.
    """
    span = clip_span(span_s, end_s)
    spans_s = [span] if windows is None else windows.cut(*span, limits.max_windows)
    choices = []
    for span in spans_s:
        for request in requests:
            positions = choose_frames(times_s, *span, request.sampling, is_keyframe)
            choices.append(FrameChoice(span, positions, times_s[positions], request.fit))
    # One empty window is an error of that window alone, so the row fails only if all are empty.
    are_empty = [len(choice.positions) == 0 for choice in choices]
    if all(are_empty) if windows is not None else any(are_empty):
        if spans_s[-1][1] < times_s[0]:
            message = (
                f"the span ends at {spans_s[-1][1]:.3f} s, the video begins at {times_s[0]:.3f} s"
            )
            raise MediaError(ErrorCode.NO_FRAMES, message)
        seconds = list(requests[are_empty.index(True) % len(requests)].sampling.at_s or ())
        raise MediaError(ErrorCode.NO_FRAMES, f"none of the seconds {seconds} lies in the span")
    return choices


def _between(frames: Frames, start_s: float, end_s: float) -> Frames | None:
    """The frames that appear in a span; None if none does.

    The frame that is on display when the span starts belongs to it, also if the span has no length.
    """
    times_s = frames.timestamps_s
    is_inside = (times_s > start_s - _ROUNDING_S) & ((times_s < end_s) | (times_s <= start_s))
    if is_inside.all():
        return frames
    if not is_inside.any():
        return None
    return replace(frames, rgb=frames.rgb[is_inside], timestamps_s=times_s[is_inside])
