"""Untrusted bytes -> an open container with one video stream that can be decoded.

FFmpeg gets bytes, never a name: no path, URI or file name of a dataset reaches it. The lists below
keep it from containers that would open other files or sockets.
"""

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from pipeline.media.containers.boxes import check_sample_counts
from pipeline.media.containers.crop import Crop, crop_of, is_cover
from pipeline.media.containers.reader import Reader
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.status import ErrorCode

# HLS, DASH, concat, SDP and image patterns open whatever they name, so none of them is listed.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg"
_CODECS = frozenset(
    "h264 hevc vp8 vp9 av1 libdav1d mpeg4 mpeg2video mpeg1video mjpeg "
    "prores dnxhd ffv1 theora flv".split()
)
_OPEN_TIMEOUT_S = 60.0  # until FFmpeg has found the streams
_BUFFER_BYTES = 64 << 10
_UNSUPPORTED = (  # what FFmpeg raises for files that are whole, but that it does not read
    av.DecoderNotFoundError,
    av.DemuxerNotFoundError,
    av.NotImplementedError,
    av.PatchWelcomeError,
    av.ProtocolNotFoundError,
)


@dataclass(frozen=True)
class OpenVideo:
    """An open container, and the stream of it that players show."""

    container: InputContainer
    stream: VideoStream
    crop: Crop


@contextmanager
def open_video(reader: Reader, limits: MediaLimits) -> Iterator[OpenVideo]:
    """Open the container at its start, with its video stream ready to decode on one thread.

    Raises:
        MediaError: the file cannot be used. Errors of FFmpeg or of the file inside the `with` block
            become a `MediaError` too.
    """
    try:
        num_bytes = reader.seek(0, io.SEEK_END)
        limits.check_num_bytes(num_bytes)
        check_sample_counts(reader, num_bytes)
        with _open(reader) as container:
            stream = _video_stream(container)
            context = stream.codec_context
            limits.check_pixels(context.width, context.height)
            limits.check_num_frames(stream.frames)
            # The header's size was checked above. FFmpeg checks again where a stream changes it.
            context.options = {"max_pixels": str(limits.max_pixels)}
            # One thread is enough, because many processes decode at the same time.
            context.thread_type, context.thread_count = "NONE", 1
            yield OpenVideo(container, stream, crop_of(reader, container, stream))
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
    """The stream that players show, by FFmpeg's rule; a cover picture does not count."""
    videos = [stream for stream in container.streams.video if not is_cover(stream)]
    if not videos:
        found = ", ".join(sorted({stream.type for stream in container.streams}))
        if not found:  # with a cut header FFmpeg finds no stream at times, and fails at others
            raise MediaError(ErrorCode.MEDIA_CORRUPT, "the file holds no stream of any kind")
        raise MediaError(ErrorCode.NO_VIDEO_STREAM, f"no video stream; the file holds {found}")
    # In MP4 a dependent stream is a tile of a HEIF picture. Elsewhere it adds to a whole picture.
    whole = [stream for stream in videos if not is_dependent(stream)]
    if len(whole) < len(videos) and "mp4" in container.format.name.split(","):
        message = "a picture that is stored in tiles, which is not read as a video"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message)
    best = container.streams.best("video")
    stream = next((each for each in whole if best and each.index == best.index), None)
    if stream is None:  # FFmpeg's choice is a cover picture or a layer
        stream = max(whole or videos, key=lambda each: bool(each.disposition & Disposition.default))
    name = stream.codec_context.name if stream.codec_context else "unknown"
    if name not in _CODECS:
        message = f"the codec {name} is not one of {', '.join(sorted(_CODECS))}"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message)
    return stream


def is_dependent(stream: VideoStream) -> bool:
    """Whether a stream is only a part of a picture."""
    return bool(stream.disposition & Disposition.dependent)
