"""`PromptBuilder`: frames and a text -> the columns of one prompt; and the columns of a failure.

Letters: I images (frames), H and W rows and columns of pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from model.inputs.processor import Item, Processor
from model.inputs.prompt import PromptError
from pipeline.media.frames import Frames
from pipeline.media.limits import MediaError
from pipeline.prompts.frame_view import FrameView, Timestamps
from pipeline.prompts.prompt_columns import encode_prompt, row_seed
from pipeline.schema import ErrorCode, Status

Columns = dict[str, Any]  # values by name, of the columns that the prepare stage adds

_PATCHES_PER_TOKEN = 4  # the projector merges 2 x 2 patches into one visual token


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of a run."""

    processor: Processor
    system: str | None  # None keeps what the checkpoint's template says
    seed: int  # of the run; each prompt gets its own from it

    def build(
        self,
        seed_id: str,
        view: FrameView,
        media: Sequence[Frames],
        items: Iterable[Item],
        text: str,
    ) -> Columns:
        """Build the columns of one prompt: the items, which show the media, and then the text.

        The prompt's seed follows from `seed_id`, its name within the run.

        Raises:
            PromptError: the prompt does not fit the context.
        """
        prompt = self.processor.prompt(
            [*items, text], system=self.system, max_frame_tokens=view.max_frame_tokens
        )
        return {
            **encode_prompt(prompt),
            **media_columns(media),
            "num_visual_tokens": prompt.num_patches // _PATCHES_PER_TOKEN,
            "seed": row_seed(self.seed, seed_id),
        }


def frame_items(media: Sequence[Frames], timestamps: Timestamps) -> Iterator[Item]:
    """Yield each frame as an image, [H, W, 3], with its time as a text before it."""
    as_text = _TIMESTAMPS[timestamps]
    for frames in media:
        for time_s, frame in zip(frames.timestamps_s.tolist(), frames.rgb, strict=True):
            yield as_text(time_s)
            yield frame


def failure_columns(error: MediaError | PromptError) -> Columns:
    """The status columns of a row, or of one of its prompts, that failed."""
    return {
        "status": Status.ERROR.value,
        "error_code": ErrorCode(error.code).value,
        # A message may quote a file name that is not UTF-8, and Arrow takes no lone surrogates.
        "error": error.message.encode(errors="replace").decode(),
    }


def media_columns(media: Sequence[Frames]) -> Columns:
    """The values of `MEDIA_FIELDS` except `num_visual_tokens`.

    Of several media, times and decoding errors are those of all, the other facts of the first.
    """
    facts = asdict(media[0].facts)
    del facts["num_decode_errors"]
    return {
        "frame_times_s": np.concatenate([each.timestamps_s for each in media]),  # [I]
        "frame_width": media[0].rgb.shape[2],
        "frame_height": media[0].rgb.shape[1],
        "num_decode_errors": sum(each.facts.num_decode_errors for each in media),
        **{f"media_{name.removesuffix('_px')}": value for name, value in facts.items()},
    }


def _as_clock(time_s: float) -> str:
    """[mm:ss], or [h:mm:ss] from an hour on."""
    minutes, seconds = divmod(int(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"[{hours}:{minutes:02}:{seconds:02}] " if hours else f"[{minutes:02}:{seconds:02}] "


_TIMESTAMPS: Mapping[Timestamps, Callable[[float], str]] = {
    "none": lambda _: "",
    "seconds": lambda time_s: f"{time_s:.1f}s ",
    "mm:ss": _as_clock,
}
