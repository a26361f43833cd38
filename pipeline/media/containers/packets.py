"""The packets of a stream, as they are stored or on one time line that rises.

Clocks of broadcasts and live streams start again, or leap: at a cut, an advertisement, or where two
files were joined. FFmpeg's own tools set such times right in the containers that expect it.
"""

from collections.abc import Iterator

import av
from av.container import InputContainer
from av.video.stream import VideoStream

# In these containers a clock may start again. In others a leap is a pause that players show.
_RESTARTING = ("mpegts", "mpeg", "flv")
# As `dts_delta_threshold` in FFmpeg's ffmpeg_demux.c: a longer leap is a new clock and no pause.
_MAX_LEAP_S = 10.0
_MAX_FALL_S = 0.1


def read_packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet | None]:
    """Yield the packets of a stream from here on; if damage ends them, the last item is None."""
    try:
        for packet in container.demux(stream):
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

    Where decode times fall back, or leap over ten seconds, the packet follows the one before it at
    once, and so do all later ones.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        assert stream.time_base is not None
        self._may_restart = container.format.name in _RESTARTING
        self._max_leap = int(_MAX_LEAP_S / stream.time_base)
        self._max_fall = int(_MAX_FALL_S / stream.time_base)
        self.offset = 0  # of all packets from here on, in units of the time base
        self._last_dts: int | None = None
        self._duration = 0  # of the last packet

    def move(self, packet: av.Packet) -> None:
        """Change the times of the next packet."""
        if self._may_restart and packet.dts is not None:
            self._follow(packet.dts, packet.duration or 0)
        if self.offset:
            if packet.pts is not None:
                packet.pts += self.offset
            if packet.dts is not None:
                packet.dts += self.offset

    def _follow(self, stored_dts: int, duration: int) -> None:
        last, dts = self._last_dts, stored_dts + self.offset
        if last is not None:
            expected = last + self._duration
            if abs(dts - expected) > self._max_leap or dts + self._max_fall < last:
                self.offset += expected - dts
                dts = expected
            self._duration = duration or max(dts - last, 0)
        else:
            self._duration = duration
        self._last_dts = dts


def read_moved_packets(
    container: InputContainer, stream: VideoStream
) -> Iterator[tuple[av.Packet | None, int]]:
    """Yield the packets of a stream from the start of its container, and by how much they moved."""
    line = TimeLine(container, stream)
    for packet in read_packets(container, stream):
        if packet is not None:
            line.move(packet)
        yield packet, line.offset
