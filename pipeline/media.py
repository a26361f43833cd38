"""Untrusted video bytes -> `Frames` with true timestamps.

FFmpeg is given bytes, never a name: no path, URI or file name of a dataset reaches it, and the
lists below keep it from containers that open other files or sockets. What a header claims about
duration or frame count is not used: the packets say when frames appear, and reading them decodes
nothing.

Time 0 is the first frame that the stream shows. I frames come out; N are in the stream.
"""

import errno
import io
import itertools
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import BinaryIO, NoReturn

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipeline.sampling import FrameIndex, FrameSampling, choose_frames, index_frames
from pipeline.schema import ErrorCode
from pipeline.view import Fit, view_of

# HLS, DASH, concat, SDP and image patterns open what they name; none of them is here.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
_CODECS = frozenset("h264 hevc vp8 vp9 av1 libdav1d mpeg4 mpeg2video mjpeg".split())
_OPEN_TIMEOUT_S = 60.0
_UNSUPPORTED = (
    av.DecoderNotFoundError,
    av.DemuxerNotFoundError,
    av.NotImplementedError,
    av.PatchWelcomeError,
    av.ProtocolNotFoundError,
)

Span = tuple[float | None, float | None]  # start and end in seconds; None is that of the video
_Shown = Iterator[tuple[int, VideoFrame]]  # frames with their pts, which rise


class MediaError(Exception):
    """The media of one row cannot be used. Other rows are not affected.

    Args:
        code: for the output's `error_code` column.
        message: what is wrong, with the offending value.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type["MediaError"], tuple[ErrorCode, str]]:
        return MediaError, (self.code, self.message)  # exceptions with two arguments need it


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Decoded frames of one video, upright and with square pixels."""

    rgb: NDArray[np.uint8]  # [I, H, W, 3]
    timestamps_s: NDArray[np.float64]  # [I] rising, since the first frame of the stream

    def __post_init__(self) -> None:
        if self.rgb.ndim != 4 or self.rgb.shape[3] != 3 or self.rgb.dtype != np.uint8:
            raise ValueError(
                f"rgb must be [I, H, W, 3] uint8, got {self.rgb.shape} {self.rgb.dtype}"
            )
        if len(self.rgb) == 0 or self.timestamps_s.shape != (len(self.rgb),):
            raise ValueError(f"{self.timestamps_s.shape=} does not fit {self.rgb.shape=}")
        if not np.isfinite(self.timestamps_s).all() or (np.diff(self.timestamps_s) <= 0).any():
            raise ValueError(f"timestamps must rise, got {self.timestamps_s.tolist()}")


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What one video may cost before it is refused as `media_too_large`."""

    max_bytes: int = 8 << 30
    max_pixels: int = 8192 * 4320  # of one frame
    max_duration_s: float = 24 * 3600.0
    max_decoded_frames: int = 2_000_000  # of the stream
    max_rgb_bytes: int = 2 << 30  # of all chosen frames at their final size

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} must be positive, got {value}")


DEFAULT_LIMITS = MediaLimits()


def decode_video(
    source: bytes | BinaryIO,
    sampling: FrameSampling,
    *,
    span_s: Span = (None, None),
    fit: Fit | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Frames:
    """Take frames out of a video, exactly those that decoding it from its start would show.

    A damaged or cut video gives what can be decoded of it. Memory holds the chosen frames at their
    final size and a few decoded ones.

    Args:
        source: the video's bytes, or a seekable file; its OSErrors mean `media_unreadable`.
        sampling: how many frames of the span.
        span_s: the part of the video to look at. The frame that is on display when it begins is
            part of it; what lies beyond the end of the video is not.
        fit: the final size for a displayed size; None keeps it.
        limits: what to refuse.

    Raises:
        MediaError: the video cannot be used; `code` says why.
        ValueError: `fit` returned no size.
    """
    reader = _Reader(io.BytesIO(source) if isinstance(source, bytes) else source)
    try:
        _check_num_bytes(reader, limits)
        with _open(reader, limits) as (container, stream):
            index = _read_index(container, stream, limits)
        positions = choose_frames(index.times_s, *_clip(span_s, index.end_s), sampling)
        wanted = index.pts[positions].tolist()
        # A jump that does not arrive costs a second attempt, from the start.
        for jump_to in dict.fromkeys((index.jump_to(wanted[0]), None)):
            with _open(reader, limits) as (container, stream):
                shown = _show(container, stream, index, jump_to)
                frames = _render(_pick(shown, wanted), stream, index, len(wanted), fit, limits)
            if frames is not None:
                return frames
    except av.FFmpegError as error:
        code = ErrorCode.MEDIA_CORRUPT
        if isinstance(error, _UNSUPPORTED):
            code = ErrorCode.MEDIA_UNSUPPORTED
        raise MediaError(code, f"the video cannot be read: {error.strerror}") from error
    except OSError as error:
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, f"reading failed: {error}") from error
    raise MediaError(ErrorCode.MEDIA_CORRUPT, f"no frame of {len(wanted)} can be decoded")


class _Reader:
    """What FFmpeg sees of a file: no name to guess from, nothing to write or close."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, num_bytes: int) -> bytes:
        return self._file.read(num_bytes)[:num_bytes]  # PyAV copies unchecked what it is given

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def _open(reader: _Reader, limits: MediaLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container at its start, with the video stream ready to decode on one thread."""
    reader.seek(0)
    try:
        container = av.open(
            reader,
            mode="r",
            timeout=(_OPEN_TIMEOUT_S, None),
            metadata_errors="replace",
            container_options={"format_whitelist": _FORMATS, "protocol_whitelist": "none"},
        )
    except av.FFmpegError as error:
        if error.errno != errno.EINVAL:  # what FFmpeg says of a format that is not on the list
            raise
        message = f"the container is none of {_FORMATS}"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message) from error
    with container:
        stream = _video_stream(container)
        context = stream.codec_context
        _check_pixels(context.width, context.height, limits)
        context.options = {"max_pixels": str(limits.max_pixels)}  # for a size that changes
        context.thread_type, context.thread_count = "NONE", 1
        yield container, stream


def _video_stream(container: InputContainer) -> VideoStream:
    """The default video stream, else the first; a cover picture is none."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise MediaError(ErrorCode.NO_VIDEO_STREAM, f"no video stream; the file holds {found}")
    stream = max(streams, key=lambda each: bool(each.disposition & Disposition.default))
    name = stream.codec_context.name if stream.codec_context else "unknown"
    if name not in _CODECS:
        message = f"the codec {name} is none of {', '.join(sorted(_CODECS))}"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message)
    return stream


def _read_index(container: InputContainer, stream: VideoStream, limits: MediaLimits) -> FrameIndex:
    """Read all packets of the stream. Damage that ends them here would end decoding too."""
    if not stream.time_base:
        raise MediaError(ErrorCode.MEDIA_CORRUPT, "the video stream has no time base")
    stores_pts = container.format.name != "avi"
    pts, durations, is_keyframe, is_hidden = array("q"), array("q"), bytearray(), bytearray()
    for packet in _packets(container, stream):
        time = packet.pts if stores_pts and packet.pts is not None else packet.dts
        if time is None:
            continue
        if len(pts) == limits.max_decoded_frames:
            _refuse(f"the video has more than {limits.max_decoded_frames} frames")
        pts.append(time)
        durations.append(packet.duration or 0)
        is_keyframe.append(packet.is_keyframe)
        is_hidden.append(packet.is_discard)
    index = index_frames(
        np.array(pts, dtype=np.int64),
        np.array(durations, dtype=np.int64),
        np.frombuffer(is_keyframe, dtype=np.bool_),
        np.frombuffer(is_hidden, dtype=np.bool_),
        time_base=stream.time_base,
        stores_pts=stores_pts,
    )
    if index is None:
        raise MediaError(ErrorCode.NO_FRAMES, "the video stream holds no frames")
    if index.end_s > limits.max_duration_s:
        _refuse(f"the video lasts {index.end_s:.0f} s, the limit is {limits.max_duration_s:.0f} s")
    return index


def _clip(span_s: Span, end_s: float) -> tuple[float, float]:
    """The part of the video, which lasts until `end_s`, that a row's span names."""
    start, end = (0.0 if span_s[0] is None else span_s[0]), span_s[1]
    if not 0.0 <= start < math.inf or (end is not None and not end > start):
        raise MediaError(ErrorCode.BAD_SPAN, f"from {start} s to {end} s is no span")
    if start > 0.0 and start >= end_s:
        message = f"the span begins at {start} s, the video ends at {end_s:.3f} s"
        raise MediaError(ErrorCode.NO_FRAMES, message)
    return start, end_s if end is None else min(end, end_s)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    try:
        for packet in container.demux(stream):
            if packet.size:  # the last is empty, to flush the decoder
                yield packet
    except av.FFmpegError:
        return  # cut short or damaged: what came before counts
    except IndexError:
        return  # PyAV 18 at the end of a file that announced a new stream on the way


def _decode(
    container: InputContainer, stream: VideoStream, jump_to: int | None
) -> Iterator[VideoFrame]:
    """Decode from the start or from a keyframe on; nothing if there is no getting there."""
    packets = _packets(container, stream)
    if jump_to is not None:
        try:
            container.seek(jump_to, stream=stream)
        except av.FFmpegError:
            return
        first = next(packets, None)
        if first is None or not first.is_keyframe or first.pts is None or first.pts > jump_to:
            return
        packets = itertools.chain([first], packets)
    num_frames, failure = 0, None
    for packet in itertools.chain(packets, [None]):
        try:
            decoded = stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            failure = error  # the next packet may be whole
            continue
        num_frames += len(decoded)
        yield from decoded
    if failure is not None and num_frames == 0 and jump_to is None:
        raise failure


def _show(
    container: InputContainer, stream: VideoStream, index: FrameIndex, jump_to: int | None
) -> _Shown:
    """Give each decoded frame its pts; nothing if a jump arrives too late.

    Where the container has no pts, the k-th frame has the k-th of the index.
    """
    first = 0 if jump_to is None else bisect_left(index.pts, jump_to)
    last = int(index.pts[0]) - 1
    for rank, frame in enumerate(_decode(container, stream, jump_to), first):
        pts = frame.pts if index.stores_pts else None
        if pts is None:
            pts = int(index.pts[min(rank, len(index.pts) - 1)])
        if jump_to is not None and rank == first and pts > jump_to:
            return
        if pts > last:
            yield pts, frame
            last = pts


def _pick(shown: _Shown, wanted: list[int]) -> _Shown:
    """The frames on display at the wanted pts, which rise; each frame once.

    Where the beginning cannot be decoded, the first frame that can stands for it.
    """
    num_passed, held = 0, None
    for pts, frame in shown:
        if held is not None:  # it was on display until now
            num_before = bisect_left(wanted, pts)
            if num_before > num_passed:
                yield held
            if num_before == len(wanted):
                return
            num_passed = num_before
        held = pts, frame
    if held is not None:
        yield held


def _render(
    picked: _Shown,
    stream: VideoStream,
    index: FrameIndex,
    num_frames: int,
    fit: Fit | None,
    limits: MediaLimits,
) -> Frames | None:
    """Turn decoded frames into RGB of one size, that of the first; None if there are none."""
    reformatter = VideoReformatter()
    view, pixels, seconds = None, np.empty(0, dtype=np.uint8), []
    for pts, frame in picked:
        _check_pixels(frame.width, frame.height, limits)
        if view is None:
            view = view_of(frame, stream, fit)
            _check_pixels(view.width_px, view.height_px, limits)
            shape = (num_frames, view.height_px, view.width_px, 3)
            if math.prod(shape) > limits.max_rgb_bytes:
                _refuse(
                    f"{num_frames} frames of {view.width_px} x {view.height_px} pixels take "
                    f"{math.prod(shape)} bytes, the limit is {limits.max_rgb_bytes}"
                )
            pixels = np.empty(shape, dtype=np.uint8)
        pixels[len(seconds)] = view.render(frame, reformatter)
        seconds.append(float((pts - int(index.pts[0])) * index.time_base))
    if not seconds:
        return None
    return Frames(rgb=pixels[: len(seconds)], timestamps_s=np.array(seconds))


def _check_num_bytes(reader: _Reader, limits: MediaLimits) -> None:
    num_bytes = reader.seek(0, io.SEEK_END)
    if num_bytes == 0:
        raise MediaError(ErrorCode.MEDIA_CORRUPT, "the video has no bytes")
    if num_bytes > limits.max_bytes:
        _refuse(f"the video has {num_bytes} bytes, the limit is {limits.max_bytes}")


def _check_pixels(width_px: int, height_px: int, limits: MediaLimits) -> None:
    if width_px * height_px > limits.max_pixels:
        _refuse(f"a frame has {width_px} x {height_px} pixels, the limit is {limits.max_pixels}")


def _refuse(message: str) -> NoReturn:
    raise MediaError(ErrorCode.MEDIA_TOO_LARGE, message)
