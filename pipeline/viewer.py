"""`Viewer`: the frames of a row that the model is to see."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from model.processor import Processor
from pipeline.codes import ErrorCode
from pipeline.decoder import Decoder
from pipeline.fit import FitFrames
from pipeline.frames import Frames
from pipeline.limits import MediaError
from pipeline.look import Look
from pipeline.video import Span
from pipeline.view import Shot


class Viewer:
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
        decoder: Decoder,
    ) -> None:
        self._processor = processor
        self._fetch = fetch
        self._decoder = decoder

    def frames(self, row: Mapping[str, Any], looks: Sequence[Look]) -> dict[Look, list[Frames]]:
        """For each look the frames of each of a row's media, which share the row's tokens evenly.

        Looks that take the same frames at the same size have the same objects.

        Raises:
            MediaError: one of them cannot be used.
        """
        value = row["video"]
        media = value if isinstance(value, list) else [value]
        if not media:
            raise MediaError(ErrorCode.MEDIA_NULL, "the row's list of media is empty")
        shot_of = {look: self._shot(look, len(media)) for look in looks}
        shots = list(dict.fromkeys(shot_of.values()))
        span_s = (row["start_s"], row["end_s"])
        taken = [self._shoot(each, shots, span_s) for each in media]
        shown = dict(zip(shots, (list(each) for each in zip(*taken, strict=True)), strict=True))
        return {look: shown[shot] for look, shot in shot_of.items()}

    def close(self) -> None:
        """End the decoding process; another row would start a new one."""
        self._decoder.close()

    def _shot(self, look: Look, num_media: int) -> Shot:
        max_row_tokens = look.max_row_tokens
        if max_row_tokens is not None:
            max_row_tokens = max(1, max_row_tokens // num_media)
        fit = FitFrames(
            image=self._processor.config.image,
            max_frame_tokens=look.max_frame_tokens,
            max_row_tokens=max_row_tokens,
        )
        return Shot(sampling=look.affordable_frames, fit=fit)

    def _shoot(self, value: object, shots: Sequence[Shot], span_s: Span) -> list[Frames]:
        media = self._fetch(value)
        try:
            return self._decoder.shoot(media, shots, span_s=span_s)
        finally:
            if not isinstance(media, bytes):
                media.close()
