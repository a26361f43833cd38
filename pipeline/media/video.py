"""Untrusted video bytes -> `Frames` with true timestamps.

    packets --> index --> choice of frames --> runs of packets --> frames of the final size

The frames are exactly those that decoding everything from the start would show. Where a run does
not give every wanted frame whole, the video is read from its start, without any shortcut.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from io import SEEK_END
from itertools import chain, islice
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.media.container import Reader, check_sample_counts, open_video, read_packets
from pipeline.media.display import FrameRequest, View
from pipeline.media.frame_buffer import FrameBuffer
from pipeline.media.frame_index import (
    FrameIndex,
    Packets,
    Run,
    index_frames,
    is_near,
    plan_runs,
)
from pipeline.media.frames import Frames, MediaFacts
from pipeline.media.limits import DEFAULT_LIMITS, MediaError, MediaLimits
from pipeline.media.windows import Choice, Span, TimeWindows, Window, choose
from pipeline.status import ErrorCode

# Their frames without `nal_ref_idc`, or B pictures, are read by no other frame. HEVC and AV1 have
# layers whose lowest only is that simple; VP9 packs hidden frames with shown ones.
_CODECS_WITH_DISPOSABLE_FRAMES = ("h264", "mpeg4", "mpeg2video")
_SEEK_BY_BYTES = ("mpegts",)  # their timestamps are found by trial

_Shown = Iterator[tuple[int, VideoFrame]]  # frames with their pts, which rise
_Picked = Iterator[tuple[int, VideoFrame, Sequence[int]]]  # and the wanted pts they stand for


def decode_video(
    source: bytes | BinaryIO,
    shots: Sequence[FrameRequest],
    *,
    windows: TimeWindows | None = None,
    span_s: Span = (None, None),
    limits: MediaLimits = DEFAULT_LIMITS,
) -> list[Window]:
    """Take frames out of a video, exactly those that decoding it from its start would show.

    Several shots are decoded together, each frame once, and each shot of a whole video has the
    pixels that it would have alone. A damaged or cut video gives what can be decoded of it. Memory
    holds the chosen frames at their final size and a few decoded ones. In this process:
    `pipeline.media.sandbox` bounds time and memory.

    Args:
        source: the video's bytes, or a seekable file; its OSErrors mean `media_unreadable`.
        shots: which frames of the span, and at which size; at least one.
        span_s: the part of the video to look at. The frame that is on display when it begins is
            part of it; what lies beyond the end of the video is not.
        windows: how to cut the span; None takes it whole, as a window for each shot.
        limits: what to refuse.

    Returns:
        For each window each shot; a window of which nothing can be decoded has an error.

    Raises:
        MediaError: the video cannot be used; `code` says why.
        ValueError: the `fit` of a shot returned no size.
        MemoryError: there is not enough.
    """
    reader = Reader(source)
    _check_file(reader, limits)
    with open_video(reader, limits) as (container, stream):
        index = _read_index(container, stream, limits)
        choices = choose(
            index.times_s,
            index.end_s,
            index.is_keyframe,
            shots,
            windows=windows,
            span_s=span_s,
            limits=limits,
        )
        chosen = [(index.pts[choice.positions].tolist(), choice.fit) for choice in choices]
        wanted = sorted({pts for each, _ in chosen for pts in each})
        canvas = FrameBuffer(stream, chosen, limits)
        runs = plan_runs(index, wanted)
        if runs is not None and _decode_runs(container, stream, index, runs, wanted, canvas):
            return _windows(choices, _frames(canvas, index, stream), windows)
    with open_video(reader, limits) as (container, stream):
        canvas = FrameBuffer(stream, chosen, limits)
        _decode_all(container, stream, index, wanted, canvas)
        if canvas.is_empty:
            message = f"no frame of {len(wanted)} can be decoded"
            raise MediaError(ErrorCode.MEDIA_CORRUPT, message)
        return _windows(choices, _frames(canvas, index, stream), windows)


def _check_file(reader: Reader, limits: MediaLimits) -> None:
    try:
        num_bytes = reader.seek(0, SEEK_END)
        limits.check_num_bytes(num_bytes)
        check_sample_counts(reader, num_bytes)
    except OSError as error:
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, f"reading failed: {error}") from error


def _read_index(container: InputContainer, stream: VideoStream, limits: MediaLimits) -> FrameIndex:
    """Read all packets of the stream. Damage that ends them here would end decoding too."""
    if not stream.time_base:
        raise MediaError(ErrorCode.MEDIA_CORRUPT, "the video stream has no time base")
    stores_pts = container.format.name != "avi"
    pts, durations, positions = array("q"), array("q"), array("q")
    is_keyframe, is_hidden = bytearray(), bytearray()
    num_damaged = num_untimed = 0
    for packet in read_packets(container, stream):
        if packet is None:
            num_damaged += 1
            break
        time = packet.pts if stores_pts and packet.pts is not None else packet.dts
        if time is None:
            num_untimed += 1
            continue
        pts.append(time)
        limits.check_num_frames(len(pts))
        durations.append(packet.duration or 0)
        positions.append(-1 if packet.pos is None else packet.pos)
        is_keyframe.append(packet.is_keyframe)
        is_hidden.append(packet.is_discard)
        num_damaged += packet.is_corrupt
    packets = Packets(
        pts=np.array(pts, dtype=np.int64),
        durations=np.array(durations, dtype=np.int64),
        positions=np.array(positions, dtype=np.int64),
        is_keyframe=np.frombuffer(is_keyframe, dtype=np.bool_),
        is_hidden=np.frombuffer(is_hidden, dtype=np.bool_),
    )
    index = index_frames(
        packets,
        time_base=stream.time_base,
        stores_pts=stores_pts,
        num_damaged=num_damaged,
        num_untimed=num_untimed,
    )
    if index is None:
        raise MediaError(ErrorCode.NO_FRAMES, "the video stream holds no frames")
    limits.check_duration(index.end_s)
    return index


def _decode_runs(
    container: InputContainer,
    stream: VideoStream,
    index: FrameIndex,
    runs: Sequence[Run],
    wanted: Sequence[int],
    canvas: FrameBuffer,
) -> bool:
    """Draw the wanted frames; False if one is missing, or anything was not as planned."""
    missing, near = set(wanted), is_near(index, wanted)
    can_skip = stream.codec_context.name in _CODECS_WITH_DISPOSABLE_FRAMES
    for run in runs:
        packets = _seek(container, stream, index, run)
        if packets is None:
            return False
        frames = _decode_run(stream, packets, near, run, can_skip=can_skip)
        try:
            for frame in _from_keyframe(frames, index, run):
                if frame is None or frame.is_corrupt:
                    return False
                if frame.pts in missing:
                    missing.remove(frame.pts)
                    canvas.draw(frame, index.seconds(frame.pts), [frame.pts])
        except MemoryError:
            raise
        except av.FFmpegError:
            return False
    return not missing


def _from_keyframe(
    frames: Iterator[VideoFrame], index: FrameIndex, run: Run
) -> Iterator[VideoFrame | None]:
    """The frames of a run from its keyframe on; None where there is no keyframe.

    What is displayed before the keyframe leads into it from frames that were not read.
    """
    first_pts = int(index.packets.pts[run.start])
    is_sure = bool(index.packets.is_hidden[run.start])  # the file's first, never shown
    for frame in frames:
        if frame.pts is None:
            yield None
        elif frame.pts >= first_pts:
            if not is_sure and not (frame.pts == first_pts and frame.key_frame):
                yield None  # the container is wrong about its keyframes
            is_sure = True
            yield frame


def _seek(
    container: InputContainer, stream: VideoStream, index: FrameIndex, run: Run
) -> Iterator[av.Packet | None] | None:
    """The packets from a run's first one on; None if there is no getting there."""
    pts, position = int(index.packets.pts[run.start]), int(index.packets.positions[run.start])
    try:
        if container.format.name in _SEEK_BY_BYTES and position >= 0:
            container.seek(position, unsupported_byte_offset=True)
        else:
            container.seek(pts, stream=stream)
    except MemoryError:
        raise
    except av.FFmpegError:
        return None
    packets = read_packets(container, stream)
    # Some containers arrive a little early.
    for packet in islice(packets, 1 + run.start):
        if packet is None:
            return None
        if packet.pts == pts and packet.is_keyframe:
            return chain([packet], packets)
    return None


def _decode_run(
    stream: VideoStream,
    packets: Iterator[av.Packet | None],
    near: NDArray[np.bool_],
    run: Run,
    *,
    can_skip: bool,
) -> Iterator[VideoFrame]:
    """Decode a run; frames that no other frame reads are left out, but for those `near`."""
    context = stream.codec_context
    for position, packet in zip(range(run.start, run.stop), packets, strict=False):
        if packet is None:
            break
        if can_skip:
            context.skip_frame = "DEFAULT" if near[position] else "NONREF"
        yield from context.decode(packet)
    yield from context.decode(None)


def _decode_all(
    container: InputContainer,
    stream: VideoStream,
    index: FrameIndex,
    wanted: Sequence[int],
    canvas: FrameBuffer,
) -> None:
    """Draw the frames on display at the wanted pts, decoding from the start; each frame once."""
    shown = _show(container, stream, index, canvas)
    for pts, frame, stands_for in _pick(shown, wanted):
        canvas.draw(frame, index.seconds(pts), stands_for)


def _show(
    container: InputContainer, stream: VideoStream, index: FrameIndex, canvas: FrameBuffer
) -> _Shown:
    """Give each decoded frame its pts.

    Where the container has no pts, the k-th frame has the k-th of the index.
    """
    last = int(index.pts[0]) - 1
    for rank, frame in enumerate(_decode_packets(container, stream, canvas)):
        pts = frame.pts if index.stores_pts else None
        if pts is None:
            pts = int(index.pts[min(rank, len(index.pts) - 1)])
        if pts > last:
            yield pts, frame
            last = pts


def _decode_packets(
    container: InputContainer, stream: VideoStream, canvas: FrameBuffer
) -> Iterator[VideoFrame]:
    num_frames, failure = 0, None
    for packet in chain(read_packets(container, stream), [None]):
        try:
            decoded = stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError as error:
            if not isinstance(error, EOFError):  # of a second flush
                failure = error  # the next packet may be whole
                canvas.num_errors += 1
            continue
        num_frames += len(decoded)
        canvas.num_errors += sum(frame.is_corrupt for frame in decoded)
        yield from decoded
    if failure is not None and num_frames == 0:
        raise failure


def _pick(shown: _Shown, wanted: Sequence[int]) -> _Picked:
    """The frames on display at the wanted pts, which rise; each frame once.

    Where the beginning cannot be decoded, the first frame that can stands for it.
    """
    num_passed, held = 0, None
    for pts, frame in shown:
        if held is not None:  # it was on display until now
            num_before = bisect_left(wanted, pts)
            if num_before > num_passed:
                yield *held, wanted[num_passed:num_before]
            if num_before == len(wanted):
                return
            num_passed = num_before
        held = pts, frame
    if held is not None:
        yield *held, wanted[num_passed:]


def _frames(canvas: FrameBuffer, index: FrameIndex, stream: VideoStream) -> Iterator[Frames | None]:
    """Of each shot of each window; None where nothing was drawn."""
    for drawn in canvas.finish():
        if drawn is None:
            yield None
        else:
            rgb, times_s, view = drawn
            facts = _facts(view, canvas, index, stream)
            yield Frames(rgb=rgb, timestamps_s=times_s, facts=facts)


def _windows(
    choices: Sequence[Choice], frames: Iterator[Frames | None], windows: TimeWindows | None
) -> list[Window]:
    is_cut = windows is not None
    return [
        choice.window(each, is_cut=is_cut) for choice, each in zip(choices, frames, strict=True)
    ]


def _facts(view: View, canvas: FrameBuffer, index: FrameIndex, stream: VideoStream) -> MediaFacts:
    return MediaFacts(
        duration_s=index.end_s,
        fps=len(index.pts) / index.end_s if index.end_s > 0 else 0.0,
        width_px=view.shown_width_px,
        height_px=view.shown_height_px,
        codec=stream.codec_context.codec.canonical_name,
        rotation=-90 * view.num_turns % 360,
        is_vfr=index.is_vfr,
        is_interlaced=canvas.is_interlaced,
        num_decode_errors=canvas.num_errors + index.num_damaged,
    )
