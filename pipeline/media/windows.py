"""Windows: the parts of a row that are asked about one by one.

    seconds   |--- length_s ---|                     pages   | 1 | 2 | 3 | 4 | 5 |
                          |--- length_s ---|                 |-- window --|-- ..
                          overlap_s

A window is what one prompt shows. Those of a video follow from its duration, which only decoding
tells, so the decoding process cuts them and decodes the frames of all in one plan. A page is a
window by itself until `pack_pages` joins those that one prompt can hold.

Letters: I images (frames), N frames of a stream.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.media.display import Fit, FrameRequest
from pipeline.media.frame_sampling import choose_frames
from pipeline.media.frames import Frames
from pipeline.media.limits import MediaError, MediaLimits, refuse
from pipeline.status import ErrorCode

Span = tuple[float | None, float | None]  # start and end in seconds; None is that of the video

_REST = 0.1  # of a window; a shorter rest at the end belongs to the window before
_ROUNDING_S = 1e-6


@dataclass(frozen=True, kw_only=True)
class TimeWindows:
    """A caption for each window of so many seconds.

    Raises:
        ValueError: there are no such windows.
    """

    length_s: float
    overlap_s: float = 0.0  # of a window with the one before
    merge: str | None = None  # the prompt that makes one caption of them; None lists them

    def __post_init__(self) -> None:
        if not 0.0 < self.length_s < math.inf:
            raise ValueError(f"a window must last a positive number of s, got {self.length_s}")
        if not 0.0 <= self.overlap_s <= self.length_s / 2:
            raise ValueError(
                f"windows of {self.length_s:g} s may overlap by 0 to {self.length_s / 2:g} s, got "
                f"{self.overlap_s:g}"
            )
        if self.merge is not None and not self.merge.strip():
            raise ValueError("the prompt that merges captions is empty; say what is wanted")

    def cut(self, start_s: float, end_s: float, max_windows: int) -> list[tuple[float, float]]:
        """The windows of a span; at least one.

        Raises:
            MediaError: there would be more than `max_windows`.
        """
        step_s = self.length_s - self.overlap_s
        # The first and so many more, until what they leave is no more than a rest.
        left_s = end_s - start_s - (1 + _REST) * self.length_s
        num_windows = 1 + max(0, math.ceil(left_s / step_s - _ROUNDING_S))
        if num_windows > max_windows:
            what = (
                f"{end_s - start_s:.0f} s are {num_windows} windows of {self.length_s:g} s; "
                "take longer ones (--window-s)"
            )
            refuse(what, max_windows, "--max-windows")
        starts = [start_s + number * step_s for number in range(num_windows)]
        return [(start, start + self.length_s) for start in starts[:-1]] + [(starts[-1], end_s)]


@dataclass(frozen=True, kw_only=True)
class PageWindows:
    """Text for each page of a document.

    Raises:
        ValueError: a number is out of range.
    """

    pages_per_prompt: int | None = 1  # at most; None: as many as the context holds
    answer_tokens: int = 4096  # for which the context must have room

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


Windows = TimeWindows | PageWindows


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one prompt shows of a row, or why it cannot be shown."""

    start: float  # seconds; or the number of pages before it
    end: float
    media: tuple[Frames, ...] = ()  # none where there is an error; pages have frames of their own
    error: MediaError | None = None

    def moved(self, offset: float) -> "Window":
        """The same, so much later."""
        return replace(self, start=self.start + offset, end=self.end + offset)


def clip_span(span_s: Span, end_s: float) -> tuple[float, float]:
    """The part of a video, which lasts until `end_s`, that a row's span names.

    Raises:
        MediaError: there is no such part.
    """
    start, end = (0.0 if span_s[0] is None else span_s[0]), span_s[1]
    if not 0.0 <= start < math.inf or (end is not None and not end > start):
        raise MediaError(ErrorCode.BAD_SPAN, f"from {start} s to {end} s is no span")
    if start > 0.0 and start >= end_s:
        message = f"the span begins at {start} s, the video ends at {end_s:.3f} s"
        raise MediaError(ErrorCode.NO_FRAMES, message)
    return start, end_s if end is None else min(end, end_s)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which frames of a stream one shot takes of one window."""

    span_s: tuple[float, float]
    positions: NDArray[np.intp]  # rising
    times_s: NDArray[np.float64]  # of those frames
    fit: Fit | None

    def window(self, frames: Frames | None, *, is_cut: bool) -> Window:
        """The window with its frames, None if nothing of it can be decoded.

        Damage puts other frames in the place of those chosen; none from outside of a window that
        was cut out of a video.
        """
        start_s, end_s = self.span_s
        if frames is not None and is_cut:
            frames = _between(frames, self.times_s[0], end_s)
        if frames is not None:
            return Window(start=start_s, end=end_s, media=(frames,))
        error = MediaError(ErrorCode.NO_FRAMES, "none of the seconds lies in the window")
        if len(self.times_s):
            message = f"no frame of {len(self.times_s)} of the window can be decoded"
            error = MediaError(ErrorCode.MEDIA_CORRUPT, message)
        return Window(start=start_s, end=end_s, error=error)


def choose(
    times_s: NDArray[np.float64],
    end_s: float,
    is_keyframe: NDArray[np.bool_],
    shots: Sequence[FrameRequest],
    *,
    windows: TimeWindows | None,
    span_s: Span,
    limits: MediaLimits,
) -> list[Choice]:
    """Choose the frames of each shot of a span; with windows, of each window.

    Args:
        times_s: [N] when each frame of the stream appears, rising, N >= 1.
        end_s: of the stream.
        is_keyframe: [N] whether a frame can be decoded by itself.
        shots: which frames, at which size.
        windows: how to cut the span.
        span_s: which part of the stream.
        limits: what to refuse.

    Raises:
        MediaError: there is no such span, it has no frames at the seconds asked for, or too many
            windows.
    """
    span = clip_span(span_s, end_s)
    spans_s = [span] if windows is None else windows.cut(*span, limits.max_windows)
    choices = []
    for span in spans_s:
        for shot in shots:
            positions = choose_frames(times_s, *span, shot.sampling, is_keyframe)
            times = times_s[positions]
            choice = Choice(span_s=span, positions=positions, times_s=times, fit=shot.fit)
            choices.append(choice)
    are_empty = [len(choice.positions) == 0 for choice in choices]
    if all(are_empty) if windows is not None else any(are_empty):
        seconds = list(shots[are_empty.index(True) % len(shots)].sampling.at_s or ())
        raise MediaError(ErrorCode.NO_FRAMES, f"none of the seconds {seconds} lies in the span")
    return choices


def _between(frames: Frames, start_s: float, end_s: float) -> Frames | None:
    """The frames that appear in a span."""
    times_s = frames.timestamps_s
    shown = (times_s > start_s - _ROUNDING_S) & ((times_s < end_s) | (times_s <= start_s))
    if shown.all():
        return frames
    if not shown.any():
        return None
    return replace(frames, rgb=frames.rgb[shown], timestamps_s=times_s[shown])


def pack_pages(
    pages: Iterable[Window],
    max_pages: int | None,
    num_tokens: Callable[[Frames], int],
    max_tokens: int,
) -> Iterator[Window]:
    """Join neighbouring pages into windows, as many as a prompt can hold.

    Args:
        pages: in order; one with an error stays alone.
        max_pages: of a window; None is no limit.
        num_tokens: what a page takes in a prompt.
        max_tokens: of a window; a page that has more is a window by itself.
    """
    held: Window | None = None
    held_tokens = 0
    for page in pages:
        tokens = sum(num_tokens(each) for each in page.media)
        fits = (
            held is not None
            and not (held.error or page.error)
            and (max_pages is None or len(held.media) < max_pages)
            and held_tokens + tokens <= max_tokens
        )
        if held is not None and fits:
            held = replace(held, end=page.end, media=(*held.media, *page.media))
            held_tokens += tokens
            continue
        if held is not None:
            yield held
        held, held_tokens = page, tokens
    if held is not None:
        yield held
