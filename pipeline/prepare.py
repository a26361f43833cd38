"""Rows -> prompts: fetch, decode, resize once, cut into patches, render the template. No Ray here.

Every row gives exactly one row: with the columns of a prompt, or with a status, a code and a
message. This is the one place where a bad row becomes a value.

Letters: I images (frames), P patches, S prompt tokens.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa

from model.processor import Item, Processor
from model.prompt import PromptError
from pipeline.decoder import Decoder
from pipeline.fit import MIN_FRAME_TOKENS, FitFrames
from pipeline.frames import Frames
from pipeline.limits import DEFAULT_LIMITS, MediaError, MediaLimits
from pipeline.questions import QUESTION_FIELD, Question, check_names, fill
from pipeline.sampling import FrameSampling
from pipeline.schema import PREPARED_FIELDS, ErrorCode, Layout, Status
from pipeline.video import Span
from pipeline.wire import encode_prompt

Timestamps = Literal["none", "seconds", "mm:ss"]


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """What is asked about each video, and how it is shown to the model."""

    prompt: str = "Describe this video in detail."  # where the row has none of its own
    questions: tuple[Question, ...] = ()  # in place of the prompt; each has a column of its own
    system: str | None = None  # None leaves it to the checkpoint's template
    frames: FrameSampling = field(default_factory=FrameSampling)
    timestamps: Timestamps = "seconds"
    max_frame_tokens: int | None = 256  # 448x448 pixels; None is the checkpoint's own limit
    # Visual tokens of a row. Its frames share them evenly, and are so few that each has enough.
    max_row_tokens: int | None = None
    limits: MediaLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; say what is wanted of each video")
        check_names(self.questions)
        if self.timestamps not in _TIMESTAMPS:
            raise ValueError(
                f"timestamps must be one of {', '.join(_TIMESTAMPS)}, got {self.timestamps!r}"
            )
        if self.max_frame_tokens is not None and self.max_frame_tokens < 1:
            raise ValueError(f"max_frame_tokens must be at least 1, got {self.max_frame_tokens}")
        if self.max_row_tokens is not None and self.max_row_tokens < MIN_FRAME_TOKENS:
            raise ValueError(
                f"max_row_tokens must be at least {MIN_FRAME_TOKENS}, which is one frame, got "
                f"{self.max_row_tokens}"
            )

    @property
    def affordable_frames(self) -> FrameSampling:
        """`frames`, but never more than `max_row_tokens` pays for."""
        if self.max_row_tokens is None:
            return self.frames
        most = self.max_row_tokens // MIN_FRAME_TOKENS
        num_frames = self.frames.num_frames and min(self.frames.num_frames, most)
        max_frames = min(self.frames.max_frames, most)
        return replace(self.frames, num_frames=num_frames, max_frames=max_frames)


class Prepare:
    """Makes prompts of rows; one per process, called with table after table.

    Args:
        processor: of the checkpoint.
        layout: of the tables that come.
        instructions: what to make of them.
        fetch: opens a row's media, a path, bytes or struct; raises `MediaError`.
        seed: of the run; each row has one of its own from it.
        decoder: decodes; None starts one.
    """

    def __init__(
        self,
        processor: Processor,
        layout: Layout,
        instructions: Instructions,
        fetch: Callable[[object], bytes | BinaryIO],
        seed: int = 0,
        decoder: Decoder | None = None,
    ) -> None:
        self._processor = processor
        self._layout = layout
        self._instructions = instructions
        self._fetch = fetch
        self._seed = seed
        self._decoder = decoder or Decoder(instructions.limits)
        self._fit = FitFrames(
            image=processor.config.image,
            max_frame_tokens=instructions.max_frame_tokens,
            max_row_tokens=instructions.max_row_tokens,
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Prepare a table of `row_id` and the layout's `read` columns.

        Returns:
            As many rows: `row_id`, the carried columns and the `PREPARED_FIELDS`; or a row for each
            question, with its number in `question`.
        """
        carried = self._layout.carry(rows)
        carried = pa.Table.from_arrays(
            [rows["row_id"], *carried.columns],
            schema=pa.schema([rows.schema.field("row_id"), *carried.schema]),
        )
        fields = [*PREPARED_FIELDS]
        if self._instructions.questions:
            copies = np.arange(rows.num_rows).repeat(len(self._instructions.questions))
            carried = carried.take(pa.array(copies))
            fields.append(QUESTION_FIELD)
        prepared = [each for row in self._used(rows) for each in self._prepare(row)]
        columns = [
            pa.array([row.get(field.name) for row in prepared], field.type) for field in fields
        ]
        return pa.Table.from_arrays(
            [*carried.columns, *columns], schema=pa.schema([*carried.schema, *fields])
        )

    def close(self) -> None:
        """End the decoding process; another table would start a new one."""
        self._decoder.close()

    def _used(self, rows: pa.Table) -> Iterator[dict[str, Any]]:
        """The values of each row by their role, one row in memory at a time."""
        columns = self._layout.columns
        roles = {
            "row_id": "row_id",
            "video": columns.video,
            "prompt": columns.prompt,
            "start_s": columns.start_s,
            "end_s": columns.end_s,
        }
        for index in range(rows.num_rows):
            used = {role: name and rows[name][index].as_py() for role, name in roles.items()}
            fields = {name: rows[name][index].as_py() for name in columns.fields}
            yield {**used, "fields": fields}

    def _prepare(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The row's prompt; or one for each question, of which the first holds the pixels."""
        questions = self._instructions.questions
        try:
            text = "" if questions else self._text(row["prompt"])
            frames = self._decode(row)
        except (MediaError, PromptError) as error:
            return [_failure(error) | {"question": each} for each in range(len(questions) or 1)]
        if not questions:
            return [self._ask(row["row_id"], frames, lambda: text)]
        asked = [
            self._ask(
                f"{row['row_id']}/{each.name}", frames, partial(fill, each.text, row["fields"])
            )
            for each in questions
        ]
        has_pixels = False
        for number, prepared in enumerate(asked):
            prepared |= {"question": number, **_facts(frames)}
            if has_pixels:
                prepared["prompt_patches"] = None  # as in the row before
            has_pixels = has_pixels or "prompt_patches" in prepared
        return asked

    def _ask(
        self, seed_id: str, frames: Sequence[Frames], text: Callable[[], str]
    ) -> dict[str, Any]:
        """The columns of one prompt about `frames`."""
        try:
            prompt = self._processor.prompt(
                [*self._shown(frames), text()],
                system=self._instructions.system,
                max_frame_tokens=self._instructions.max_frame_tokens,
            )
        except PromptError as error:
            return _failure(error)
        return {
            **encode_prompt(prompt),
            **_facts(frames),
            "num_visual_tokens": prompt.num_patches // 4,
            "seed": row_seed(self._seed, seed_id),
        }

    def _text(self, own: str | None) -> str:
        text = self._instructions.prompt if own is None else own
        if not text.strip():
            raise PromptError("bad_prompt", "the row's prompt is empty")
        return text

    def _decode(self, row: Mapping[str, Any]) -> list[Frames]:
        """The frames of each of the row's media, which share the row's tokens evenly."""
        value = row["video"]
        media = value if isinstance(value, list) else [value]
        if not media:
            raise MediaError(ErrorCode.MEDIA_NULL, "the row's list of media is empty")
        fit = self._fit
        if fit.max_row_tokens is not None:
            fit = replace(fit, max_row_tokens=max(1, fit.max_row_tokens // len(media)))
        return [self._decode_one(each, (row["start_s"], row["end_s"]), fit) for each in media]

    def _decode_one(self, value: object, span_s: Span, fit: FitFrames) -> Frames:
        media = self._fetch(value)
        try:
            return self._decoder.decode(
                media, self._instructions.affordable_frames, span_s=span_s, fit=fit
            )
        finally:
            if not isinstance(media, bytes):
                media.close()

    def _shown(self, media: Sequence[Frames]) -> Iterator[Item]:
        """Each frame with its time before it."""
        as_text = _TIMESTAMPS[self._instructions.timestamps]
        for frames in media:
            for time_s, frame in zip(frames.timestamps_s.tolist(), frames.rgb, strict=True):
                yield as_text(time_s)
                yield frame


def _failure(error: MediaError | PromptError) -> dict[str, Any]:
    return {
        "status": Status.ERROR.value,
        "error_code": ErrorCode(error.code).value,
        "error": error.message,
    }


def _facts(media: Sequence[Frames]) -> dict[str, object]:
    """The values of `MEDIA_FIELDS` but for the tokens; of several media the facts of the first."""
    facts = asdict(media[0].facts) | {
        "num_decode_errors": sum(each.facts.num_decode_errors for each in media)
    }
    return {
        "frame_times_s": np.concatenate([each.timestamps_s for each in media]),
        "frame_width": media[0].rgb.shape[2],
        "frame_height": media[0].rgb.shape[1],
        "num_decode_errors": facts.pop("num_decode_errors"),
        **{f"media_{name.removesuffix('_px')}": value for name, value in facts.items()},
    }


def row_seed(seed: int, row_id: str) -> int:
    """The seed of one row in [0, 2**63), whatever the order of rows and restarts."""
    digest = hashlib.blake2b(f"{seed}:{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _as_clock(time_s: float) -> str:
    """[mm:ss], or [h:mm:ss] from an hour on."""
    minutes, seconds = divmod(int(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"[{hours}:{minutes:02}:{seconds:02}] " if hours else f"[{minutes:02}:{seconds:02}] "


_TIMESTAMPS: Mapping[str, Callable[[float], str]] = {
    "none": lambda _: "",
    "seconds": lambda time_s: f"{time_s:.1f}s ",
    "mm:ss": _as_clock,
}
