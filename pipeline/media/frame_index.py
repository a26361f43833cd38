"""When the frames of a stream appear, and how to reach some of them with little decoding.

The index is made from the packets, without decoding and without the duration and the number of
frames that a header claims. A plan then cuts the stream into runs of packets. Reading on to the
next wanted frame and seeking to the keyframe before it are both exact; the plan takes the cheaper.

Time 0 is the start of the container, as players show it: where sound begins before the picture, the
first frame appears later than 0. Letters: N frames that are shown, M packets.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.media.containers.packets import read_moved_packets
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.status import ErrorCode

_SEEK_COST = 4  # in decoded packets; a seek takes about a millisecond
# A run ends one packet after its last wanted frame, because the second field of an interlaced
# picture may come in a packet of its own.
_MARGIN = 1
# AVI stores no times, and ASF one time for each packet, which FFmpeg takes for its decode time.
_WITHOUT_PTS = ("avi", "asf")
_ROUNDING_S = Fraction(1, av.time_base)  # of the start of a container, as FFmpeg tells it


@dataclass(frozen=True, kw_only=True)
class Packets:
    """The M packets of a stream, in decode order."""

    pts: NDArray[np.int64]  # [M] in units of the stream's time base, on one time line that rises
    moved: NDArray[np.int64]  # [M] pts minus the stored pts; 0 unless a clock starts again or leaps
    durations: NDArray[np.int64]  # [M] 0 if not known
    positions: NDArray[np.int64]  # [M] bytes from the start of the file; -1 if not known
    is_keyframe: NDArray[np.bool_]  # [M]
    is_hidden: NDArray[np.bool_]  # [M] decoded, but cut off by an edit list


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """When each of the N >= 1 frames of a stream appears."""

    packets: Packets
    pts: NDArray[np.int64]  # [N] rising, in units of the time base
    end_pts: int  # when the last frame ends
    start_pts: int  # time 0; at most pts[0]
    time_base: Fraction  # seconds of a unit
    # False if the container stores no presentation times (AVI, ASF). Then `pts` are decode times,
    # and the k-th frame that decoding gives has the k-th of them.
    stores_pts: bool
    num_damaged: int = 0  # packets that the container flags as damaged, and damage that ends it
    num_untimed: int = 0  # packets without any time, which `packets` leaves out

    @property
    def end_s(self) -> float:
        """When the last frame ends, in seconds."""
        return self.seconds(self.end_pts)

    @property
    def duration_s(self) -> float:
        """How long frames are shown, from the first frame to the end of the last, in seconds."""
        return float((self.end_pts - int(self.pts[0])) * self.time_base)

    @property
    def times_s(self) -> NDArray[np.float64]:
        """[N] when each frame appears, in seconds."""
        return (self.pts - self.start_pts).astype(np.float64) * float(self.time_base)

    @property
    def is_keyframe(self) -> NDArray[np.bool_]:
        """[N] whether decoding can begin at a frame; False if the container stores no pts."""
        if not self.stores_pts:
            return np.zeros(len(self.pts), dtype=np.bool_)
        return np.isin(self.pts, self.packets.pts[self.packets.is_keyframe])

    @property
    def frame_ticks(self) -> int:
        """The median time between frames, in units of the time base; 0 if there is one frame."""
        return int(np.median(np.diff(self.pts))) if len(self.pts) > 1 else 0

    @property
    def is_vfr(self) -> bool:
        """Whether the rate varies: some frame lasts a quarter longer or shorter than usual."""
        usual = self.frame_ticks
        # Times of a constant rate, rounded to the time base, differ by up to 2 units.
        return bool((np.abs(np.diff(self.pts) - usual) > max(usual / 4, 2)).any())

    def seconds(self, pts: int) -> float:
        """When the frame with these pts appears, in seconds."""
        return float((pts - self.start_pts) * self.time_base)


def index_frames(
    packets: Packets,
    *,
    time_base: Fraction,
    stores_pts: bool,
    start_s: Fraction | None = None,
    num_damaged: int = 0,
    num_untimed: int = 0,
) -> FrameIndex | None:
    """Make the index of a stream from its packets, or None if no frame is shown.

    `start_s` is where time 0 lies on the time line of the packets; the first frame if it is None
    or later. Packets before the first keyframe cannot be decoded, and hidden ones are not shown;
    neither counts as a frame.
    """
    pts, is_shown = packets.pts, ~packets.is_hidden
    if packets.is_keyframe.any():
        first = int(packets.is_keyframe.argmax())
        is_shown &= (np.arange(len(pts)) >= first) & (pts >= pts[first])
    shown_pts = np.unique(pts[is_shown])
    if len(shown_pts) == 0:
        return None
    duration = int(packets.durations[is_shown][pts[is_shown].argmax()])
    if duration <= 0:
        duration = int(np.median(np.diff(shown_pts))) if len(shown_pts) > 1 else 0
    return FrameIndex(
        packets=packets,
        pts=shown_pts,
        end_pts=int(shown_pts[-1]) + max(duration, 0),
        start_pts=_start_pts(int(shown_pts[0]), start_s, time_base),
        time_base=time_base,
        stores_pts=stores_pts,
        num_damaged=num_damaged,
        num_untimed=num_untimed,
    )


def _start_pts(first_pts: int, start_s: Fraction | None, time_base: Fraction) -> int:
    """Time 0 in units of the time base."""
    if start_s is None or first_pts * time_base - start_s <= _ROUNDING_S:
        return first_pts
    return round(start_s / time_base)


def read_index(container: InputContainer, stream: VideoStream, limits: MediaLimits) -> FrameIndex:
    """Read all packets of a stream, from where the container stands, and make their index.

    Damage that ends the packets here would end decoding too, so the index ends with it.

    Raises:
        MediaError: the stream has no time base or shows no frames, or is over a limit.
    """
    if not stream.time_base:
        raise MediaError(ErrorCode.MEDIA_CORRUPT, "the video stream has no time base")
    stores_pts = container.format.name not in _WITHOUT_PTS
    start = container.start_time  # of the stream that begins first
    # Compact columns, for a stream may have millions of packets.
    ticks, flags = array("q"), bytearray()
    num_damaged = num_untimed = 0
    for packet, moved in read_moved_packets(container, stream):
        if packet is None:
            num_damaged += 1
            break
        time = packet.pts if stores_pts and packet.pts is not None else packet.dts
        if time is None:
            num_untimed += 1
            continue
        position = -1 if packet.pos is None else packet.pos
        ticks.extend((time, moved, packet.duration or 0, position))
        flags.extend((packet.is_keyframe, packet.is_discard))
        limits.check_num_frames(len(flags) // 2)
        num_damaged += packet.is_corrupt
    pts, moved, durations, positions = np.array(ticks, dtype=np.int64).reshape(-1, 4).T
    is_keyframe, is_hidden = np.frombuffer(flags, dtype=np.bool_).reshape(-1, 2).T
    index = index_frames(
        Packets(
            pts=pts,
            moved=moved,
            durations=durations,
            positions=positions,
            is_keyframe=is_keyframe,
            is_hidden=is_hidden,
        ),
        time_base=stream.time_base,
        stores_pts=stores_pts,
        start_s=None if start is None else Fraction(start, av.time_base),
        num_damaged=num_damaged,
        num_untimed=num_untimed,
    )
    if index is None:
        raise MediaError(ErrorCode.NO_FRAMES, "the video stream holds no frames")
    limits.check_duration(index.duration_s)
    return index


@dataclass(frozen=True)
class PacketRun:
    """The packets `[start, stop)` in decode order; `start` is a keyframe."""

    start: int
    stop: int


def plan_runs(index: FrameIndex, wanted: Sequence[int]) -> list[PacketRun] | None:
    """Plan which packets to decode for the frames of the `wanted` pts, which rise.

    A run begins at the last keyframe from which its first wanted frame can be decoded, and ends one
    packet behind its last wanted frame. A seek costs as much as decoding a few packets, so runs
    that nearly meet become one:

        packets   K.........K.........K.........K.........K.........    K is a keyframe
        wanted       ^                     ^      ^           ^
        runs      [----)              [-------------)     [-----)

    Here the second run reads on through the fourth keyframe.

    Returns:
        The runs in order; or None if only decoding from the start is sure to give these frames:
        there are no presentation times, or no keyframe before a wanted frame, or the packets have a
        strange order.
    """
    packets = index.packets
    if not index.stores_pts or index.num_untimed or not packets.is_keyframe.any():
        return None
    first = int(packets.is_keyframe.argmax())
    # A run is checked by the frame of its keyframe, which never comes out of the decoder if it is
    # hidden. Only the first keyframe may be: nothing is before it that a check could miss.
    keyframes = np.union1d(first, np.flatnonzero(packets.is_keyframe & ~packets.is_hidden))
    order = np.argsort(packets.pts, kind="stable")
    last = np.searchsorted(packets.pts[order], wanted, side="right") - 1
    runs: list[PacketRun] = []
    for pts, at in zip(wanted, order[last].tolist(), strict=True):
        run = _run_of(packets, keyframes, pts, at)
        if run is None:
            return None
        if not runs or run.start > runs[-1].stop + _SEEK_COST:
            runs.append(run)
        elif at < runs[-1].start:  # a frame that is shown later is decoded before this run
            return None
        else:
            runs[-1] = PacketRun(runs[-1].start, max(runs[-1].stop, run.stop))
    if runs[0].start <= first + _SEEK_COST:  # reading from the start costs no more than a seek
        runs[0] = PacketRun(first, runs[0].stop)
    return runs


def _run_of(packets: Packets, keyframes: NDArray[np.intp], pts: int, at: int) -> PacketRun | None:
    """The run for one wanted frame, whose packet is at `at`; None if there is no such frame."""
    before = keyframes[keyframes <= at]
    # A B picture that follows a keyframe and is shown before it needs the keyframe before that.
    before = before[packets.pts[before] <= pts]
    if packets.pts[at] != pts or len(before) == 0:
        return None
    return PacketRun(int(before[-1]), min(at + 1 + _MARGIN, len(packets.pts)))


def is_near(index: FrameIndex, wanted: Sequence[int]) -> NDArray[np.bool_]:
    """[M] whether a packet's frame lies within one and a half frames of a wanted one."""
    pts, targets = index.packets.pts, np.asarray(wanted, dtype=np.int64)
    after = np.searchsorted(targets, pts)
    reach = 1.5 * max(index.frame_ticks, 1)
    is_before = np.abs(pts - targets[np.maximum(after - 1, 0)]) <= reach
    is_after = np.abs(targets[np.minimum(after, len(targets) - 1)] - pts) <= reach
    return is_before | is_after
