"""Untrusted bytes as an open container with one video stream that may be decoded.

FFmpeg is given bytes, never a name: no path, URI or file name of a dataset reaches it, and the
lists below keep it from containers that open other files or sockets.
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

# HLS, DASH, concat, SDP and image patterns open what they name; none of them is here.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
_CODECS = frozenset("h264 hevc vp8 vp9 av1 libdav1d mpeg4 mpeg2video mjpeg".split())
_OPEN_TIMEOUT_S = 60.0
_BUFFER_BYTES = 64 << 10
_UNSUPPORTED = (
    av.DecoderNotFoundError,
    av.DemuxerNotFoundError,
    av.NotImplementedError,
    av.PatchWelcomeError,
    av.ProtocolNotFoundError,
)


class Reader:
    """What FFmpeg sees of a file: no name to guess from, nothing to write or close."""

    def __init__(self, source: bytes | BinaryIO) -> None:
        self._file = io.BytesIO(source) if isinstance(source, bytes) else source

    def read(self, num_bytes: int) -> bytes:
        """At most so many bytes; PyAV copies unchecked what it is given."""
        return self._file.read(num_bytes)[:num_bytes]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of files."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of files."""
        return self._file.tell()


@contextmanager
def open_video(reader: Reader, limits: MediaLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container at its start, with the video stream ready to decode on one thread.

    Raises:
        MediaError: here, or for what FFmpeg or the file raise inside of the `with`.
    """
    try:
        with _open(reader) as container:
            stream = _video_stream(container)
            context = stream.codec_context
            limits.check_pixels(context.width, context.height)
            limits.check_num_frames(stream.frames)
            context.options = {"max_pixels": str(limits.max_pixels)}  # for a size that changes
            context.thread_type, context.thread_count = "NONE", 1
            yield container, stream
    except MemoryError:  # also FFmpeg's
        raise
    except av.FFmpegError as error:
        code = ErrorCode.MEDIA_CORRUPT
        if isinstance(error, _UNSUPPORTED):
            code = ErrorCode.MEDIA_UNSUPPORTED
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
        if error.errno != errno.EINVAL:  # what FFmpeg says of a format that is not on the list
            raise
        message = f"the container is none of {_FORMATS}"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message) from error


def _video_stream(container: InputContainer) -> VideoStream:
    """The default video stream, else the first; a cover picture is none."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        found = ", ".join(sorted({stream.type for stream in container.streams}))
        if not found:  # some cut headers are read in this way at times, and at times not at all
            raise MediaError(ErrorCode.MEDIA_CORRUPT, "the file holds no stream of any kind")
        raise MediaError(ErrorCode.NO_VIDEO_STREAM, f"no video stream; the file holds {found}")
    stream = max(streams, key=lambda each: bool(each.disposition & Disposition.default))
    name = stream.codec_context.name if stream.codec_context else "unknown"
    if name not in _CODECS:
        message = f"the codec {name} is none of {', '.join(sorted(_CODECS))}"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message)
    return stream


def read_packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet | None]:
    """The packets from here on; None stands for damage that ends them."""
    try:
        for packet in container.demux(stream):
            if packet.size:  # the last is empty, to flush the decoder
                yield packet
    except MemoryError:
        raise
    except av.FFmpegError:
        yield None  # cut short or damaged: what came before counts
    except IndexError:
        return  # PyAV 18 at the end of a file that announced a new stream on the way


_FIRST = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide")
_PARENTS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"))
_COUNT_AT = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # bytes into the box, after its header
_MAX_DEPTH = 8


def check_sample_counts(reader: Reader, num_bytes: int) -> None:
    """Refuse an MP4 that claims more samples than it has bytes; other files pass.

    Raises:
        MediaError: `media_corrupt`.
    """
    reader.seek(0)
    if reader.read(8)[4:] in _FIRST:
        _check(reader, 0, num_bytes, num_bytes, _MAX_DEPTH)


def _check(reader: Reader, start: int, end: int, num_bytes: int, depth: int) -> None:
    for kind, first, last in _boxes(reader, start, end):
        if kind in _PARENTS and depth:
            _check(reader, first, last, num_bytes, depth - 1)
        elif kind in _COUNT_AT:
            reader.seek(first + _COUNT_AT[kind])
            field = reader.read(4)
            if len(field) == 4 and (count := struct.unpack(">I", field)[0]) > num_bytes:
                message = f"the file claims {count} samples, but has only {num_bytes} bytes"
                raise MediaError(ErrorCode.MEDIA_CORRUPT, message)


def _boxes(reader: Reader, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte after the header, and end of the boxes in a range."""
    while start + 8 <= end:
        reader.seek(start)
        header = reader.read(16)
        if len(header) < 8:
            return
        size, kind = struct.unpack(">I4s", header[:8])
        first = start + 8
        if size == 1 and len(header) == 16:
            (size,), first = struct.unpack(">Q", header[8:]), start + 16
        stop = end if size == 0 else start + size
        if stop < first:
            return
        yield kind, first, min(stop, end)
        start = stop
