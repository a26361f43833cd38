"""Decode the frames of one request or of several, without windows, as most tests want it."""

from collections.abc import Sequence
from typing import Any, overload

from pipeline.media import decode, video
from pipeline.media.display import Fit, FrameRequest
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.frames import Frames
from pipeline.media.sandbox import SandboxedDecoder


@overload
def decode_video(
    source: Any, wanted: FrameSampling, *, fit: Fit | None = None, **options: Any
) -> Frames: ...
@overload
def decode_video(source: Any, wanted: Sequence[FrameRequest], **options: Any) -> list[Frames]: ...
def decode_video(source: Any, wanted: Any, *, fit: Fit | None = None, **options: Any) -> Any:
    """Decode a video in this process."""
    if isinstance(wanted, FrameSampling):
        return decode_video(source, [FrameRequest(sampling=wanted, fit=fit)], **options)[0]
    windows = video.decode_video(source, wanted, **options)
    return [frames for window in windows for frames in window.media]


@overload
def decode_media(
    source: Any, wanted: FrameSampling, *, fit: Fit | None = None, **options: Any
) -> Frames: ...
@overload
def decode_media(source: Any, wanted: Sequence[FrameRequest], **options: Any) -> list[Frames]: ...
def decode_media(source: Any, wanted: Any, *, fit: Fit | None = None, **options: Any) -> Any:
    """Decode a video or picture in this process."""
    if isinstance(wanted, FrameSampling):
        return decode_media(source, [FrameRequest(sampling=wanted, fit=fit)], **options)[0]
    windows = decode.decode_media(source, wanted, **options)
    return [frames for window in windows for frames in window.media]


def decode_in(
    decoder: SandboxedDecoder,
    source: Any,
    sampling: FrameSampling,
    *,
    fit: Fit | None = None,
    **options: Any,
) -> Frames:
    """Decode the frames of one request in a decoding process."""
    return decoder.decode(source, [FrameRequest(sampling=sampling, fit=fit)], **options)[0]
