"""`FrameLoader`: the frames of a row that the model is to see."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO, TypeVar

from model.inputs.processor import Processor
from model.inputs.prompt import PromptError
from pipeline.media.display import FrameRequest
from pipeline.media.frames import Frames
from pipeline.media.limits import MediaError, MediaLimits, refuse
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.windows import Window, Windows
from pipeline.prompts.frame_view import FitFrames, FrameView
from pipeline.status import ErrorCode

Shown = TypeVar("Shown")


class FrameLoader:
    """Opens and decodes the media of one row after the other, each of them once.

    Args:
        processor: of the checkpoint, which tells what fits.
        fetch: opens a row's media, a path, bytes or struct; raises `MediaError`.
        decoder: decodes.
    """

    def __init__(
        self,
        processor: Processor,
        fetch: Callable[[object], bytes | BinaryIO],
        decoder: SandboxedDecoder,
    ) -> None:
        self._processor = processor
        self._fetch = fetch
        self._decoder = decoder

    def frames(
        self, row: Mapping[str, Any], looks: Sequence[FrameView], limits: MediaLimits
    ) -> dict[FrameView, list[Frames]]:
        """For each look the frames of each of a row's media, which share the row's tokens evenly.

        Looks that take the same frames at the same size have the same objects.

        Raises:
            MediaError: one of them cannot be used, or they take too much memory together.
            PromptError: they are more than any prompt can show; none of them is opened.
        """
        media = _as_list(row["video"])
        self._check_num_media(len(media))
        shot_of = {look: self._shot(look, len(media)) for look in looks}
        shots = list(dict.fromkeys(shot_of.values()))
        span_s = (row["start_s"], row["end_s"])
        decode = partial(self._decoder.decode, shots=shots, span_s=span_s)
        taken: list[list[Frames]] = []  # of each of the media, by shot
        num_bytes = 0
        for number, each in enumerate(media, 1):
            taken.append(self._opened(each, decode))
            num_bytes += sum(frames.rgb.nbytes for frames in taken[-1])
            limits.check_rgb_of_row(num_bytes, f"the frames of {number} media")
        shown = dict(zip(shots, (list(each) for each in zip(*taken, strict=True)), strict=True))
        return {look: shown[shot] for look, shot in shot_of.items()}

    def windows(
        self, row: Mapping[str, Any], look: FrameView, windows: Windows, limits: MediaLimits
    ) -> list[Window]:
        """The windows of a row's video; or the pages of all its media, each by itself.

        Raises:
            MediaError: one of the media cannot be used, or there are too many pages.
        """
        media = _as_list(row["video"])
        decode = partial(
            self._decoder.decode_windows,
            shots=[self._shot(look, 1)],
            windows=windows,
            span_s=(row["start_s"], row["end_s"]),
        )
        found: list[Window] = []
        num_bytes = 0
        for each in media:
            if len(found) == limits.max_pages and len(media) > 1:
                refuse("the row has more pages", limits.max_pages, "--max-pages")
            new = self._opened(each, decode)
            num_pages = len(found) + len(new)
            if num_pages > limits.max_pages and len(media) > 1:
                refuse(f"the row has {num_pages} pages", limits.max_pages, "--max-pages")
            num_bytes += sum(frames.rgb.nbytes for window in new for frames in window.media)
            limits.check_rgb_of_row(num_bytes, f"{num_pages} pages")
            found += new if len(media) == 1 else [window.moved(len(found)) for window in new]
        return found

    def close(self) -> None:
        """End the decoding process; another row would start a new one."""
        self._decoder.close()

    def _check_num_media(self, num_media: int) -> None:
        """Refuse a list that is too long even if each of its media is one small picture."""
        most = self._processor.max_images
        if num_media > most:
            raise PromptError(
                "prompt_too_long",
                f"the row has {num_media} media, and a prompt has room for {most} images at most; "
                "give it fewer",
            )

    def _shot(self, look: FrameView, num_media: int) -> FrameRequest:
        max_row_tokens = look.max_row_tokens
        if max_row_tokens is not None:
            max_row_tokens = max(1, max_row_tokens // num_media)
        fit = FitFrames(
            image=self._processor.config.image,
            max_frame_tokens=look.max_frame_tokens,
            max_row_tokens=max_row_tokens,
        )
        return FrameRequest(sampling=look.affordable_frames, fit=fit)

    def _opened(self, value: object, decode: Callable[[bytes | BinaryIO], Shown]) -> Shown:
        media = self._fetch(value)
        try:
            return decode(media)
        finally:
            if not isinstance(media, bytes):
                media.close()


def _as_list(value: object) -> list[object]:
    media = value if isinstance(value, list) else [value]
    if not media:
        raise MediaError(ErrorCode.MEDIA_NULL, "the row's list of media is empty")
    return media
