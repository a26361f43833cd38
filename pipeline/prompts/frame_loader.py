"""`FrameLoader`: fetches and decodes the media of a row into the frames that the model sees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Protocol, TypeVar

from model.inputs.processor import Processor
from model.inputs.prompt import PromptError
from pipeline.media.display import FrameRequest
from pipeline.media.frames import Frames
from pipeline.media.limits import MediaError, MediaLimits, refuse
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.windows import Window, Windows
from pipeline.prompts.frame_view import FitFrames, FrameView
from pipeline.prompts.input_row import InputRow
from pipeline.status import ErrorCode

Decoded = TypeVar("Decoded")


class LoadsFrames(Protocol):
    """What makes prompts of a row's frames asks for them; see `FrameLoader`."""

    def frames(
        self, row: InputRow, views: Sequence[FrameView]
    ) -> Mapping[FrameView, Sequence[Frames]]:
        """Load the frames of a row for each view."""
        ...

    def windows(self, row: InputRow, view: FrameView, windows: Windows) -> Sequence[Window]:
        """Load the windows of a row."""
        ...


@dataclass(frozen=True)
class FrameLoader:
    """Loads the frames of one row after the other; opens and decodes each of its media once."""

    processor: Processor  # decides what size a frame may have
    fetch: Callable[[object], bytes | BinaryIO]  # opens one media value or raises a `MediaError`
    decoder: SandboxedDecoder
    limits: MediaLimits  # on the media of one row
    background: str | None  # of transparent pictures, as for `FrameRequest`

    def frames(
        self, row: InputRow, views: Sequence[FrameView]
    ) -> dict[FrameView, Sequence[Frames]]:
        """Load the frames of a row for each view, one `Frames` for each of the row's media.

        The media of a row share its visual tokens evenly. Views that take the same frames at the
        same size get the same list, so that a caller can tell by identity.

        Raises:
            MediaError: one of the media cannot be used, or all together take too much memory.
            PromptError: the row has more media than any prompt can show; none of them is opened.
        """
        media = _as_list(row.media)
        # A list can be too long for a prompt even if each image is as small as can be.
        if len(media) > (max_images := self.processor.max_images):
            raise PromptError(
                "prompt_too_long",
                f"the row has {len(media)} media, and a prompt has room for at most {max_images} "
                "images; give it fewer",
            )
        request_of = {view: self._request(view, len(media)) for view in views}
        requests = list(dict.fromkeys(request_of.values()))
        decode = partial(self.decoder.decode, requests=requests, span_s=row.span_s)
        of_media: list[list[Frames]] = []  # for each of the media, the frames of each request
        num_bytes = 0
        for number, value in enumerate(media, 1):
            of_media.append(self._load(value, decode))
            num_bytes += sum(frames.rgb.nbytes for frames in of_media[-1])
            self.limits.check_rgb_of_row(num_bytes, f"the frames of {number} media")
        of_request = dict(zip(requests, zip(*of_media, strict=True), strict=True))
        return {view: of_request[request] for view, request in request_of.items()}

    def windows(self, row: InputRow, view: FrameView, windows: Windows) -> list[Window]:
        """Load the windows of a row's video, or the pages of all its media, one page a window.

        Raises:
            MediaError: one of the media cannot be used, or there are too many pages.
        """
        media, max_pages = _as_list(row.media), self.limits.max_pages
        decode = partial(
            self.decoder.decode_windows,
            requests=[self._request(view, 1)],
            windows=windows,
            span_s=row.span_s,
        )
        loaded: list[Window] = []
        num_bytes = 0
        for value in media:
            if len(media) > 1 and len(loaded) == max_pages:  # one more has at least one page
                refuse("the row has more pages", max_pages, "--max-pages")
            new = self._load(value, decode)
            num_pages = len(loaded) + len(new)
            if len(media) > 1 and num_pages > max_pages:  # of one, the decoder keeps the limit
                refuse(f"the row has {num_pages} pages", max_pages, "--max-pages")
            num_bytes += sum(frames.rgb.nbytes for window in new for frames in window.media)
            self.limits.check_rgb_of_row(num_bytes, f"{num_pages} pages")
            loaded += [window.moved(len(loaded)) for window in new]
        return loaded

    def _request(self, view: FrameView, num_media: int) -> FrameRequest:
        max_row_tokens = view.max_row_tokens
        if max_row_tokens is not None:
            max_row_tokens = max(1, max_row_tokens // num_media)
        fit = FitFrames(
            image=self.processor.config.image,
            max_frame_tokens=view.max_frame_tokens,
            max_row_tokens=max_row_tokens,
        )
        return FrameRequest(sampling=view.affordable_frames, fit=fit, background=self.background)

    def _load(self, value: object, decode: Callable[[bytes | BinaryIO], Decoded]) -> Decoded:
        """Open one of the media, decode it and close it."""
        media = self.fetch(value)
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
