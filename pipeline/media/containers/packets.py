"""The packets of a stream, as they are stored or on one time line that rises.

Clocks of broadcasts and live streams start again, or leap: at a cut, an advertisement, or where two
files were joined. FFmpeg's own tools set such times right in the containers that expect it.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import av
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

# In these containers a clock may start again. In others, and by a leap of FLV, a picture stays.
_RESTARTING = ("mpegts", "mpeg", "flv")
_LEAPING = ("mpegts", "mpeg")
# As in `ts_discontinuity_detect` of FFmpeg's ffmpeg_demux.c: more than this is another clock.
_MAX_LEAP_US = 10 * av.time_base
_MAX_FALL_US = av.time_base // 10


def read_packets(container: InputContainer, *streams: Stream) -> Iterator[av.Packet | None]:
    """Yield the packets of streams from here on; if damage ends them, the last item is None."""
    try:
        for packet in container.demux(*streams):
            if packet.size:  # PyAV ends with an empty packet that would flush the decoder
                yield packet
    except MemoryError:
        raise
    except av.FFmpegError:
        yield None  # the file is cut or damaged here; the packets so far are good
    except IndexError:
        return  # PyAV 18 raises it at the end of a file in which a new stream began on the way


class TimeLine:
    """Moves the times of packets, taken from the start of a container, onto one rising time line.

    Where decode times fall back, or in broadcasts leap over ten seconds, the packet follows the one
    before it at once, and all later ones of picture and sound move with it. A pause of one stream
    alone is no leap: then the clock of the others has gone on.
    """

    def __init__(self, container: InputContainer, shown: VideoStream) -> None:
        self._may_leap = container.format.name in _LEAPING
        self._shown = shown.index
        self._ends: dict[int, _End] = {}  # by stream
        self._last: _End | None = None  # of any stream
        self._offset_us = self._before_us = 0  # of the clock that began last, and of the one before
        self._last_pts_us = -sys.maxsize  # the latest of the shown stream

    def move(self, packet: av.Packet) -> int:
        """Change the times of the next packet; return by how much, in units of its time base."""
        stored_pts = packet.pts
        # FFmpeg guesses a time of PS from the next packet, which may be of another clock.
        ahead = (packet.pts or 0) - (packet.dts or packet.pts or 0)
        if _microseconds(ahead, packet) > _MAX_LEAP_US:
            packet.pts = packet.dts
        end = self._ends.get(packet.stream_index, self._last)
        if packet.dts is None:
            offset_us = self._offset_us if end is None else end.offset_us
        else:
            offset_us = self._follow(packet, packet.dts, end)
        if moved := _ticks(offset_us, packet):
            packet.pts = None if packet.pts is None else packet.pts + moved
            packet.dts = None if packet.dts is None else packet.dts + moved
        if packet.pts is None or stored_pts is None:
            return moved
        if packet.stream_index == self._shown:
            self._last_pts_us = max(self._last_pts_us, _microseconds(packet.pts, packet))
        return packet.pts - stored_pts

    def _follow(self, packet: av.Packet, dts: int, end: "_End | None") -> int:
        """Say how far a packet moves that comes after `end`, of its stream if there is one."""
        stored_us = _microseconds(dts, packet)
        duration_us = _microseconds(packet.duration or 0, packet)
        offset_us = self._offset_us
        if end is not None and self._last is not None:
            next_us = end.dts_us + end.duration_us
            # The last packets of a clock may come after the first ones of the next.
            is_own = packet.stream_index in self._ends
            clocks_us = (offset_us, end.offset_us if is_own else self._before_us)
            offset_us = min(clocks_us, key=lambda clock_us: abs(stored_us + clock_us - next_us))
            dts_us = stored_us + offset_us
            leap_us = min(abs(dts_us - next_us), abs(dts_us - self._last.dts_us))
            falls = is_own and dts_us + _MAX_FALL_US < end.dts_us
            if falls or (self._may_leap and leap_us > _MAX_LEAP_US):
                offset_us = self._no_earlier(packet, next_us - stored_us)
                self._before_us, self._offset_us = self._offset_us, offset_us
            duration_us = duration_us or (max(dts_us - end.dts_us, 0) if is_own else 0)
        self._last = _End(stored_us + offset_us, duration_us, offset_us)
        self._ends[packet.stream_index] = self._last
        return offset_us

    def _no_earlier(self, packet: av.Packet, offset_us: int) -> int:
        """Move the first packet of another clock so far that it is shown after all before it."""
        if packet.stream_index != self._shown or packet.pts is None:
            return offset_us
        next_us = self._last_pts_us + _microseconds(packet.duration or 1, packet)
        return max(offset_us, next_us - _microseconds(packet.pts, packet))


@dataclass(frozen=True)
class _End:
    """The last packet of a stream, after it was moved."""

    dts_us: int
    duration_us: int
    offset_us: int  # by which it was moved


def _microseconds(ticks: int, packet: av.Packet) -> int:
    unit = packet.time_base
    return ticks * unit.numerator * av.time_base // unit.denominator


def _ticks(microseconds: int, packet: av.Packet) -> int:
    unit = packet.time_base
    return round(microseconds * unit.denominator / (unit.numerator * av.time_base))


def read_moved_packets(
    container: InputContainer, stream: VideoStream
) -> Iterator[tuple[av.Packet | None, int]]:
    """Yield the packets of a stream from the start of its container, and by how much they moved.

    As `read_packets`; the second value is in units of the stream's time base.
    """
    if container.format.name not in _RESTARTING:
        yield from zip(read_packets(container, stream), repeat(0))
        return
    line = TimeLine(container, stream)
    for packet in read_packets(container, *container.streams.video, *container.streams.audio):
        moved = 0 if packet is None else line.move(packet)
        if packet is None or packet.stream_index == stream.index:
            yield packet, moved
