"""When the frames of a stream appear, and how to reach some of them with little decoding.

The index comes from the packets, whose reading decodes nothing; what a header claims about duration
or frame count is not used. A plan cuts the stream into runs of packets: each begins at a keyframe
and ends with the last frame wanted from it. Reading through to the next wanted frame and seeking to
its keyframe are both exact; the plan takes what decodes fewer packets.

Time 0 is the first frame that the stream shows. N frames are shown; M packets hold them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_SEEK_COST = 4  # in decoded packets: a seek takes about a millisecond
# One packet more than the wanted frame's: the second field of an interlaced picture may come alone.
_MARGIN = 1


@dataclass(frozen=True, kw_only=True)
class Packets:
    """The packets of a stream in decode order, M of them."""

    pts: NDArray[np.int64]  # [M] in units of the stream's time base
    durations: NDArray[np.int64]  # [M] 0 where not known
    positions: NDArray[np.int64]  # [M] bytes from the start of the file; -1 where not known
    is_keyframe: NDArray[np.bool_]  # [M]
    is_hidden: NDArray[np.bool_]  # [M] an edit list cuts it off


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """When each of the N >= 1 frames of a stream appears."""

    packets: Packets
    pts: NDArray[np.int64]  # [N] rising
    end_pts: int  # when the last frame goes
    time_base: Fraction  # seconds
    # False where the container stores no presentation times (AVI): `pts` are then decode times,
    # and the k-th frame that decoding shows has the k-th of them.
    stores_pts: bool
    num_damaged: int = 0  # packets that the container flags, and an end that is damage
    num_untimed: int = 0  # packets that are not in `packets`

    @property
    def end_s(self) -> float:
        """The duration, from the first frame on."""
        return float((self.end_pts - int(self.pts[0])) * self.time_base)

    @property
    def times_s(self) -> NDArray[np.float64]:
        """[N] when each frame appears; the first at 0."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    @property
    def is_keyframe(self) -> NDArray[np.bool_]:
        """[N] whether decoding can begin with it; never, where packets do not tell when."""
        if not self.stores_pts:
            return np.zeros(len(self.pts), dtype=np.bool_)
        return np.isin(self.pts, self.packets.pts[self.packets.is_keyframe])

    @property
    def frame_ticks(self) -> int:
        """The usual time from one frame to the next; 0 if there is but one."""
        return int(np.median(np.diff(self.pts))) if len(self.pts) > 1 else 0

    @property
    def is_vfr(self) -> bool:
        """Whether some frame stays a quarter longer or shorter than usual, beyond rounding."""
        steps = np.diff(self.pts)
        usual = self.frame_ticks
        return bool((np.abs(steps - usual) > max(usual / 4, 2)).any())

    def seconds(self, pts: int) -> float:
        """When a frame appears."""
        return float((pts - int(self.pts[0])) * self.time_base)


def index_frames(
    packets: Packets,
    *,
    time_base: Fraction,
    stores_pts: bool,
    num_damaged: int = 0,
    num_untimed: int = 0,
) -> FrameIndex | None:
    """Make the index of a stream.

    What comes before the first keyframe cannot be decoded and does not count, nor do hidden
    packets.

    Returns:
        None if nothing is shown.
    """
    pts, is_shown = packets.pts, ~packets.is_hidden
    if packets.is_keyframe.any():
        first = int(packets.is_keyframe.argmax())
        is_shown &= (np.arange(len(pts)) >= first) & (pts >= pts[first])
    shown = np.unique(pts[is_shown])
    if len(shown) == 0:
        return None
    duration = int(packets.durations[is_shown][pts[is_shown].argmax()])
    if duration <= 0:
        duration = int(np.median(np.diff(shown))) if len(shown) > 1 else 0
    return FrameIndex(
        packets=packets,
        pts=shown,
        end_pts=int(shown[-1]) + max(duration, 0),
        time_base=time_base,
        stores_pts=stores_pts,
        num_damaged=num_damaged,
        num_untimed=num_untimed,
    )


@dataclass(frozen=True)
class Run:
    """Packets `[start, stop)` in decode order; `start` is a keyframe."""

    start: int
    stop: int


def plan_runs(index: FrameIndex, wanted: Sequence[int]) -> list[Run] | None:
    """The runs of packets whose frames include those of the `wanted` pts, which rise.

    Returns:
        None where only reading from the start is sure: no presentation times, no keyframe before
        a wanted frame, packets in a strange order.
    """
    packets = index.packets
    if not index.stores_pts or index.num_untimed or not packets.is_keyframe.any():
        return None
    first = int(packets.is_keyframe.argmax())
    keyframes = np.flatnonzero(packets.is_keyframe & ~packets.is_hidden)
    keyframes = np.union1d(first, keyframes)
    order = np.argsort(packets.pts, kind="stable")
    last = np.searchsorted(packets.pts[order], wanted, side="right") - 1
    runs: list[Run] = []
    for pts, at in zip(wanted, order[last].tolist(), strict=True):
        before = keyframes[keyframes <= at]
        before = before[packets.pts[before] <= pts]
        if packets.pts[at] != pts or len(before) == 0:
            return None
        start, stop = int(before[-1]), min(at + 1 + _MARGIN, len(packets.pts))
        if not runs or start > runs[-1].stop + _SEEK_COST:
            runs.append(Run(start, stop))
        elif at < runs[-1].start:
            return None
        else:
            runs[-1] = Run(runs[-1].start, max(runs[-1].stop, stop))
    if runs[0].start <= first + _SEEK_COST:  # nothing to gain
        runs[0] = Run(first, runs[0].stop)
    return runs


def is_near(index: FrameIndex, wanted: Sequence[int]) -> NDArray[np.bool_]:
    """[M] whether a packet's frame lies within a frame and a half of a wanted one."""
    pts, targets = index.packets.pts, np.asarray(wanted, dtype=np.int64)
    after = np.searchsorted(targets, pts)
    reach = 1.5 * max(index.frame_ticks, 1)
    is_before = np.abs(pts - targets[np.maximum(after - 1, 0)]) <= reach
    is_after = np.abs(targets[np.minimum(after, len(targets) - 1)] - pts) <= reach
    return is_before | is_after
