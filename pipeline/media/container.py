"""Untrusted bytes -> an open container with one video stream that can be decoded.

FFmpeg gets bytes, never a name: no path, URI or file name of a dataset reaches it. The lists below
keep it from containers that would open other files or sockets.
"""

import errno
import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from pipeline.media.limits import MediaError, MediaLimits
from pipeline.status import ErrorCode

# HLS, DASH, concat, SDP and image patterns open whatever they name, so none of them is listed.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
_CODECS = frozenset("h264 hevc vp8 vp9 av1 libdav1d mpeg4 mpeg2video mjpeg".split())
_OPEN_TIMEOUT_S = 60.0  # until FFmpeg has found the streams
_BUFFER_BYTES = 64 << 10
_UNSUPPORTED = (  # what FFmpeg raises for files that are whole, but that it does not read
    av.DecoderNotFoundError,
    av.DemuxerNotFoundError,
    av.NotImplementedError,
    av.PatchWelcomeError,
    av.ProtocolNotFoundError,
)


class Reader:
    """The file as FFmpeg sees it: it has no name to guess from, and cannot be written or closed."""

    def __init__(self, source: bytes | BinaryIO) -> None:
        self._file = io.BytesIO(source) if isinstance(source, bytes) else source
        self.seek, self.tell = self._file.seek, self._file.tell

    def read(self, num_bytes: int) -> bytes:
        """Read at most `num_bytes` bytes."""
        # PyAV copies what it is given without a check, and a faulty file could give more.
        return self._file.read(num_bytes)[:num_bytes]


@contextmanager
def open_video(reader: Reader, limits: MediaLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container at its start, with its video stream ready to decode on one thread.

    Raises:
        MediaError: the file cannot be used. Errors of FFmpeg or of the file inside the `with` block
            become a `MediaError` too.
    """
    try:
        num_bytes = reader.seek(0, io.SEEK_END)
        limits.check_num_bytes(num_bytes)
        _check_sample_counts(reader, num_bytes)
        with _open(reader) as container:
            stream = _video_stream(container)
            context = stream.codec_context
            limits.check_pixels(context.width, context.height)
            limits.check_num_frames(stream.frames)
            # The header's size was checked above. FFmpeg checks again where a stream changes it.
            context.options = {"max_pixels": str(limits.max_pixels)}
            # One thread is enough, because many processes decode at the same time.
            context.thread_type, context.thread_count = "NONE", 1
            yield container, stream
    except MemoryError:  # first, for FFmpeg's own MemoryError is an FFmpegError too
        raise
    except av.FFmpegError as error:
        is_whole = isinstance(error, _UNSUPPORTED)
        code = ErrorCode.MEDIA_UNSUPPORTED if is_whole else ErrorCode.MEDIA_CORRUPT
        raise MediaError(code, f"the video cannot be read: {error.strerror}") from error
    except OSError as error:
        raise MediaError(ErrorCode.MEDIA_UNREADABLE, f"reading failed: {error}") from error


def _open(reader: Reader) -> InputContainer:
    reader.seek(0)
    try:
        return av.open(
            reader,
            mode="r",
            timeout=(_OPEN_TIMEOUT_S, None),
            buffer_size=_BUFFER_BYTES,
            metadata_errors="replace",
            container_options={"format_whitelist": _FORMATS, "protocol_whitelist": "none"},
        )
    except av.FFmpegError as error:
        if error.errno != errno.EINVAL:  # FFmpeg's answer to a format that is not on the list
            raise
        message = f"the container is not one of {_FORMATS}"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message) from error


def _video_stream(container: InputContainer) -> VideoStream:
    """The default video stream, or else the first one; a cover picture does not count."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        found = ", ".join(sorted({stream.type for stream in container.streams}))
        if not found:  # with a cut header FFmpeg finds no stream at times, and fails at others
            raise MediaError(ErrorCode.MEDIA_CORRUPT, "the file holds no stream of any kind")
        raise MediaError(ErrorCode.NO_VIDEO_STREAM, f"no video stream; the file holds {found}")
    stream = max(streams, key=lambda each: bool(each.disposition & Disposition.default))
    name = stream.codec_context.name if stream.codec_context else "unknown"
    if name not in _CODECS:
        message = f"the codec {name} is not one of {', '.join(sorted(_CODECS))}"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message)
    return stream


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


# Boxes of an MP4 file (ISO/IEC 14496-12).
_TOP_LEVEL = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide")
_PARENTS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"))
_COUNT_AT = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # offset of the sample count, after the header
_MAX_DEPTH = 8


def _check_sample_counts(reader: Reader, num_bytes: int) -> None:
    """Refuse an MP4 file that claims more samples than it has bytes; other files pass.

    FFmpeg would make tables of that many samples, whatever the file holds.
    """
    reader.seek(0)
    if reader.read(8)[4:] in _TOP_LEVEL:
        _check_boxes(reader, 0, num_bytes, num_bytes, _MAX_DEPTH)


def _check_boxes(reader: Reader, start: int, end: int, num_bytes: int, depth: int) -> None:
    for kind, first, last in _boxes(reader, start, end):
        if kind in _PARENTS and depth:
            _check_boxes(reader, first, last, num_bytes, depth - 1)
        elif kind in _COUNT_AT:
            reader.seek(first + _COUNT_AT[kind])
            field = reader.read(4)
            if len(field) == 4 and (count := struct.unpack(">I", field)[0]) > num_bytes:
                message = f"the file claims {count} samples, but has only {num_bytes} bytes"
                raise MediaError(ErrorCode.MEDIA_CORRUPT, message)


def _boxes(reader: Reader, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each box in a range, where its content starts and where it ends."""
    while start + 8 <= end:
        reader.seek(start)
        header = reader.read(16)
        if len(header) < 8:
            return
        size, kind = struct.unpack(">I4s", header[:8])
        first = start + 8
        if size == 1 and len(header) == 16:  # a size of 64 bits follows
            (size,), first = struct.unpack(">Q", header[8:]), start + 16
        stop = end if size == 0 else start + size  # 0: the box reaches to the end
        if stop < first:
            return
        yield kind, first, min(stop, end)
        start = stop
