"""Untrusted video bytes -> `Frames` with true timestamps.

    packets --> index --> choice of frames --> runs of packets --> frames of the final size

The frames are exactly those that decoding the whole video from its start would show. Where a run
does not give every wanted frame undamaged, the video is decoded from its start, without shortcuts.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.media.containers.opening import OpenVideo, open_video
from pipeline.media.containers.packets import read_moved_packets, read_packets
from pipeline.media.containers.reader import Reader
from pipeline.media.display import DisplayTransform, FrameRequest
from pipeline.media.frame_buffer import FrameBuffer
from pipeline.media.frame_index import FrameIndex, PacketRun, is_near, plan_runs, read_index
from pipeline.media.frames import Frames, MediaFacts
from pipeline.media.limits import DEFAULT_LIMITS, MediaError, MediaLimits
from pipeline.media.windows import FrameChoice, Span, TimeWindows, Window, choose_by_window
from pipeline.status import ErrorCode

# In these codecs a frame without `nal_ref_idc`, or a B picture, is read by no other frame, so that
# FFmpeg can skip it. HEVC and AV1 have layers, of which only the lowest is that simple; VP9 packs
# hidden frames together with shown ones.
_CODECS_WITH_DISPOSABLE_FRAMES = ("h264", "mpeg4", "mpeg2video")
# FFmpeg finds a time in these containers by trial, so a seek names the packet's position instead.
_SEEK_BY_BYTES = ("mpegts",)


def decode_video(
    source: bytes | BinaryIO,
    requests: Sequence[FrameRequest],
    *,
    windows: TimeWindows | None = None,
    span_s: Span = (None, None),
    limits: MediaLimits = DEFAULT_LIMITS,
) -> list[Window]:
    """Take frames out of a video, exactly those that decoding it from its start would show.

    Several requests are decoded together, each frame once, and each request gets the pixels that it
    would get alone. A damaged or cut video gives what can be decoded of it. Memory holds the chosen
    frames at their final size and a few decoded ones. This runs in the calling process;
    `pipeline.media.sandbox` also limits time and memory.

    Args:
        source: the video's bytes, or a seekable file; its OSErrors mean `media_unreadable`.
        requests: which frames of the span to take, and at which size; at least one.
        windows: how to cut the span into windows; None takes it whole, as one window.
        span_s: the part of the video to look at. The frame that is on display when it begins is
            part of it; what lies beyond the end of the video is not.
        limits: what to refuse.

    Returns:
        The windows in order, and within each window one `Window` for each request. A window of
        which no frame can be decoded has an error.

    Raises:
        MediaError: the video cannot be used; `code` says why.
        ValueError: the `fit` of a request returned no size.
        MemoryError: there is not enough memory.
    """
    reader = Reader(source)
    with open_video(reader, limits) as video:
        index = read_index(video.container, video.stream, limits)
        choices = choose_by_window(
            index.times_s, index.end_s, index.is_keyframe, requests, windows, span_s, limits
        )
        chosen = [(index.pts[choice.positions].tolist(), choice.fit) for choice in choices]
        wanted = sorted({pts for each, _ in chosen for pts in each})
        decoding = _Decoding(video, index, FrameBuffer(video, chosen, limits))
        # Only a position of the file finds a packet whose time occurs twice.
        can_seek = not index.packets.moved.any() or video.container.format.name in _SEEK_BY_BYTES
        runs = plan_runs(index, wanted) if can_seek else None
        if runs is not None and decoding.decode_runs(runs, wanted):
            return decoding.windows(choices, is_cut=windows is not None)
    # Open the video again: a decoder that met something unexpected may be in any state.
    with open_video(reader, limits) as video:
        decoding = _Decoding(video, index, FrameBuffer(video, chosen, limits))
        decoding.decode_from_start(wanted)
        if decoding.buffer.is_empty:
            message = f"no frame of {len(wanted)} can be decoded"
            raise MediaError(ErrorCode.MEDIA_CORRUPT, message)
        return decoding.windows(choices, is_cut=windows is not None)


class _UnexpectedError(Exception):
    """A run does not give the frames that the index promises."""


@dataclass(frozen=True)
class _Decoding:
    """An open video, and the buffer that its wanted frames go to."""

    video: OpenVideo
    index: FrameIndex
    buffer: FrameBuffer

    @property
    def container(self) -> InputContainer:
        return self.video.container

    @property
    def stream(self) -> VideoStream:
        return self.video.stream

    def decode_runs(self, runs: Sequence[PacketRun], wanted: Sequence[int]) -> bool:
        """Decode runs of packets; keep the frames of the wanted pts.

        Returns:
            False if a frame is missing or damaged, or anything is not as the index says.
        """
        missing, near = list(wanted[::-1]), is_near(self.index, wanted)  # the next one is last
        try:
            for run in runs:
                for frame in self._from_keyframe(self._decode_run(run, near), run):
                    if missing and frame.pts == missing[-1]:
                        pts = missing.pop()
                        self.buffer.add(frame, self.index.seconds(pts), [pts])
        except MemoryError:  # FFmpeg's own is an FFmpegError too
            raise
        except (av.FFmpegError, _UnexpectedError):
            return False
        return not missing

    def decode_from_start(self, wanted: Sequence[int]) -> None:
        """Decode all packets up to the last wanted frame, whatever damage there is."""
        for pts, frame, stands_for in _on_display(self._timed_frames(), wanted):
            self.buffer.add(frame, self.index.seconds(pts), stands_for)

    def windows(self, choices: Sequence[FrameChoice], *, is_cut: bool) -> list[Window]:
        """The decoded frames as windows, one for each choice."""
        windows = []
        for choice, contents in zip(choices, self.buffer.contents(), strict=True):
            frames = None
            if contents is not None:
                rgb, times_s, transform = contents
                frames = Frames(rgb=rgb, timestamps_s=times_s, facts=self._facts(transform))
            windows.append(choice.window(frames, is_cut=is_cut))
        return windows

    def _decode_run(self, run: PacketRun, near: NDArray[np.bool_]) -> Iterator[VideoFrame]:
        """Decode a run, skipping frames that are not `near` and that no other frame reads."""
        context = self.stream.codec_context
        can_skip = context.name in _CODECS_WITH_DISPOSABLE_FRAMES
        for position, packet in zip(range(run.start, run.stop), self._seek(run), strict=False):
            if packet is None:  # damage; the frames before it may be all that are wanted
                break
            if packet.pts is not None:
                packet.pts = packet.pts + int(self.index.packets.moved[position])
            if can_skip:
                context.skip_frame = "DEFAULT" if near[position] else "NONREF"
            yield from context.decode(packet)
        yield from context.decode(None)

    def _from_keyframe(self, frames: Iterator[VideoFrame], run: PacketRun) -> Iterator[VideoFrame]:
        """Yield the frames of a run from its keyframe on.

        Frames that are displayed before the keyframe refer to frames that were not read.

        Raises:
            _UnexpectedError: the first frame is not the keyframe, or a frame is damaged or untimed.
        """
        packets = self.index.packets
        first_pts = int(packets.pts[run.start])
        # The stream's first keyframe may be hidden by an edit list. Then it never comes.
        is_sure = bool(packets.is_hidden[run.start])
        for frame in frames:
            if frame.pts is None:
                raise _UnexpectedError
            if frame.pts < first_pts:
                continue
            is_sure = is_sure or (frame.pts == first_pts and frame.key_frame)
            if frame.is_corrupt or not is_sure:  # or the container is wrong about its keyframes
                raise _UnexpectedError
            yield frame

    def _seek(self, run: PacketRun) -> Iterator[av.Packet | None]:
        """Seek to a run and give the packets from its first one on.

        Raises:
            _UnexpectedError: the packet cannot be found.
        """
        packets = self.index.packets
        pts = int(packets.pts[run.start] - packets.moved[run.start])  # as it is stored
        position = int(packets.positions[run.start])
        by_bytes = self.container.format.name in _SEEK_BY_BYTES and position >= 0
        if by_bytes:
            self.container.seek(position, unsupported_byte_offset=True)
        else:
            self.container.seek(pts, stream=self.stream)
        found = read_packets(self.container, self.stream)
        # Some containers arrive a few packets early.
        for packet in islice(found, 1 + run.start):
            if packet is None:
                break
            is_there = packet.pos == position or not by_bytes
            if packet.pts == pts and packet.is_keyframe and is_there:
                return chain([packet], found)
        raise _UnexpectedError

    def _timed_frames(self) -> Iterator[tuple[int, VideoFrame]]:
        """Decode from the start; yield each frame with its pts, which rise."""
        last = int(self.index.pts[0]) - 1
        for rank, frame in enumerate(self._decode_all_packets()):
            pts = frame.pts if self.index.stores_pts else None
            if pts is None:  # then the k-th frame has the k-th pts of the index
                pts = int(self.index.pts[min(rank, len(self.index.pts) - 1)])
            if pts > last:
                yield pts, frame
                last = pts

    def _decode_all_packets(self) -> Iterator[VideoFrame]:
        """Decode every packet that can be decoded; raise the last error if none can."""
        num_frames, failure = 0, None
        packets = (packet for packet, _ in read_moved_packets(self.container, self.stream))
        for packet in chain(packets, [None]):  # None flushes
            try:
                decoded = self.stream.codec_context.decode(packet)
            except MemoryError:
                raise
            except av.FFmpegError as error:
                if not isinstance(error, EOFError):  # that is a second flush, after damage
                    failure = error  # the next packet may be whole
                    self.buffer.num_errors += 1
                continue
            num_frames += len(decoded)
            self.buffer.num_errors += sum(frame.is_corrupt for frame in decoded)
            yield from decoded
        if failure is not None and num_frames == 0:
            raise failure

    def _facts(self, transform: DisplayTransform) -> MediaFacts:
        index = self.index
        return MediaFacts(
            duration_s=index.duration_s,
            fps=len(index.pts) / index.duration_s if index.duration_s > 0 else 0.0,
            width_px=transform.displayed_width_px,
            height_px=transform.displayed_height_px,
            codec=self.stream.codec_context.codec.canonical_name,
            stream=self.stream.index,
            rotation=-90 * transform.num_turns % 360,
            is_vfr=index.is_vfr,
            is_interlaced=self.buffer.is_interlaced,
            num_decode_errors=self.buffer.num_errors + index.num_damaged,
        )


def _on_display(
    frames: Iterator[tuple[int, VideoFrame]], wanted: Sequence[int]
) -> Iterator[tuple[int, VideoFrame, Sequence[int]]]:
    """Yield the frames on display at the wanted pts, each once, with the pts that it stands for.

    The pts of all `frames` of the video rise, and so do the `wanted` ones. A frame is on display
    until the next one appears, and the last one for ever. Where the beginning of the video cannot
    be decoded, the first frame that can be stands for it. Decoding ends with the last wanted frame.
    """
    num_done = 0
    on_display: tuple[int, VideoFrame] | None = None
    for pts, frame in frames:
        if on_display is not None:
            num_before = bisect_left(wanted, pts)
            if num_before > num_done:
                yield *on_display, wanted[num_done:num_before]
            if num_before == len(wanted):
                return
            num_done = num_before
        on_display = pts, frame
    if on_display is not None:
        yield *on_display, wanted[num_done:]
