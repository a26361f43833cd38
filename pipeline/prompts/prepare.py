"""Rows -> prompts: fetch, decode, resize once, cut into patches, render the template. No Ray here.

Every row gives exactly one row: with the columns of a prompt, or with a status, a code and a
message. This is the one place where a bad row becomes a value.

Letters: I images (frames), P patches, S prompt tokens.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from model.inputs.images import image_size
from model.inputs.processor import Item, Processor
from model.inputs.prompt import PromptError
from pipeline.media.frames import Frames
from pipeline.media.limits import MediaError
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.windows import PageWindows, Window, pack_pages
from pipeline.prompts.frame_loader import FrameLoader
from pipeline.prompts.frame_view import FrameView, Timestamps
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.prompt_columns import encode_prompt
from pipeline.prompts.questions import fill
from pipeline.prompts.window_answers import PAGES_REQUEST, page_line
from pipeline.schema import (
    PART_FIELD,
    PREPARED_FIELDS,
    QUESTION_FIELD,
    WINDOW_FIELD,
    ErrorCode,
    RowSchema,
    Status,
)


class Prepare:
    """Makes prompts of rows; one per process, called with table after table.

    Args:
        processor: of the checkpoint.
        row_schema: of the tables that come.
        instructions: what to make of them.
        fetch: opens a row's media, a path, bytes or struct; raises `MediaError`.
        seed: of the run; each row has one of its own from it.
        decoder: decodes; None starts one.
    """

    def __init__(
        self,
        processor: Processor,
        row_schema: RowSchema,
        instructions: Instructions,
        fetch: Callable[[object], bytes | BinaryIO],
        seed: int = 0,
        decoder: SandboxedDecoder | None = None,
    ) -> None:
        self._processor = processor
        self._row_schema = row_schema
        self._instructions = instructions
        self._seed = seed
        self._viewer = FrameLoader(
            processor, fetch, decoder or SandboxedDecoder(instructions.limits)
        )

    def __call__(self, rows: pa.Table, error: MediaError | None = None) -> pa.Table:
        """Prepare a table of `row_id` and the row_schema's `read` columns.

        Args:
            rows: the table.
            error: give all of them up for it.

        Returns:
            As many rows: `row_id`, the carried columns and the `PREPARED_FIELDS`; or a row for each
            part, with its number in `PART_FIELD` and that of its question in `QUESTION_FIELD`, or
            what it shows in `WINDOW_FIELD`. Carried columns are null but for the first part.
        """
        prepared = [self._prepare(self._used(rows, index, error)) for index in range(rows.num_rows)]
        ids, carried = rows["row_id"], self._row_schema.carry(rows)
        fields = [*PREPARED_FIELDS]
        if self._instructions.questions or self._instructions.windows:
            of_part = np.arange(rows.num_rows).repeat([len(parts) for parts in prepared])
            is_first = np.diff(of_part, prepend=-1) > 0
            ids = ids.take(pa.array(of_part))
            carried = carried.take(pa.array(of_part, mask=~is_first))  # may be the media's bytes
            fields += [PART_FIELD, QUESTION_FIELD if self._instructions.questions else WINDOW_FIELD]
        columns = [
            pa.array([part.get(field.name) for parts in prepared for part in parts], field.type)
            for field in fields
        ]
        schema = pa.schema([rows.schema.field("row_id"), *carried.schema, *fields])
        return pa.Table.from_arrays([ids, *carried.columns, *columns], schema=schema)

    def close(self) -> None:
        """End the decoding process; another table would start a new one."""
        self._viewer.close()

    def _used(
        self, rows: pa.Table, index: int, error: MediaError | PromptError | None
    ) -> dict[str, Any]:
        """The values of a row by their role, with an error where it shall not or cannot be used.

        Parquet does not check that text is UTF-8; what is not is null there.
        """
        columns = self._row_schema.columns

        def value(name: str) -> Any:
            nonlocal error
            try:
                return rows[name][index].as_py()
            except UnicodeDecodeError as no_text:
                what = f"the text in column {name!r} is not UTF-8: {no_text}"
                if name == columns.video:
                    error = error or MediaError(ErrorCode.MEDIA_UNREADABLE, what)
                else:
                    error = error or PromptError(ErrorCode.BAD_PROMPT.value, what)
                return None

        roles = {
            "row_id": "row_id",
            "video": columns.video,
            "prompt": columns.prompt,
            "start_s": columns.start_s,
            "end_s": columns.end_s,
        }
        used = {role: name and value(name) for role, name in roles.items()}
        fields = {name: value(name) for name in (*columns.fields, *columns.lists)}
        return {**used, "fields": fields, "error": error}

    def _prepare(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The row's prompt; or its parts, where the first to show some frames has the pixels."""
        looks, limits = self._instructions.looks, self._instructions.limits
        if not self._instructions.questions:
            try:
                _require_usable(row)
                text = self._text(row["prompt"])
                if self._instructions.windows is not None:
                    return self._ask_windows(row, text)
                (media,) = self._viewer.frames(row, looks, limits).values()
            except (MediaError, PromptError) as error:
                return [_failure(error) | {PART_FIELD.name: 0}]
            items = shown(media, looks[0].timestamps)
            return [self._ask(row["row_id"], looks[0], media, items, lambda: text)]
        asked = list(self._asked(row))
        try:
            _require_usable(row)
            taken = self._viewer.frames(row, looks, limits)
        except (MediaError, PromptError) as error:
            prepared = [_failure(error) for _ in asked]
        else:
            prepared = [
                self._ask(
                    each.seed_id,
                    each.look,
                    taken[each.look],
                    shown(taken[each.look], each.look.timestamps),
                    each.text,
                )
                for each in asked
            ]
            _share_pixels(prepared, [taken[each.look] for each in asked])
        for number, (part, each) in enumerate(zip(prepared, asked, strict=True)):
            part.update({PART_FIELD.name: number, QUESTION_FIELD.name: each.question})
        return prepared

    def _asked(self, row: Mapping[str, Any]) -> Iterator["_Asked"]:
        """What is asked about a row, part by part."""
        for number, question in enumerate(self._instructions.questions):
            look = question.look or self._instructions.look
            for place, values in enumerate(question.asked(row["fields"])):
                name = question.name if question.over is None else f"{question.name}/{place}"
                text = partial(fill, question.text, values)
                yield _Asked(number, f"{row['row_id']}/{name}", look, text)

    def _ask_windows(self, row: Mapping[str, Any], text: str) -> list[dict[str, Any]]:
        """A prompt for each window of the row.

        Raises:
            MediaError: there are no windows.
            PromptError: the text alone fills the context.
        """
        look, windows = self._instructions.look, self._instructions.windows
        assert windows is not None
        found: Iterable[Window] = self._viewer.windows(
            row, look, windows, self._instructions.limits
        )
        if isinstance(windows, PageWindows):
            found = self._packed(found, windows, text)
        prepared = []
        for number, window in enumerate(found):
            items, asked = shown(window.media, look.timestamps), text
            if isinstance(windows, PageWindows) and len(window.media) > 1:
                items, asked = _numbered(window), text + PAGES_REQUEST
            if window.error is not None:
                part = _failure(window.error)
            else:
                seed_id = f"{row['row_id']}/{number}"
                part = self._ask(seed_id, look, window.media, items, lambda asked=asked: asked)
            span = {"start": window.start, "end": window.end}
            prepared.append(part | {PART_FIELD.name: number, WINDOW_FIELD.name: span})
        return prepared

    def _packed(self, pages: Iterable[Window], windows: PageWindows, text: str) -> Iterator[Window]:
        """Pages batched_splits as prompts can hold them."""
        config, look = self._processor.config, self._instructions.look
        context_len = config.text.max_position_embeddings
        room = max(context_len - windows.answer_tokens, context_len // 2)
        asked, system = text + PAGES_REQUEST, self._instructions.system
        smallest = np.zeros((config.image.patch_size, config.image.patch_size, 3), np.uint8)
        num_text = len(self._processor.prompt([asked], system=system).token_ids)
        one_page = self._processor.prompt([page_line(9999), smallest, asked], system=system)
        num_around = len(one_page.token_ids) - num_text - 1  # of a page beside its pixels

        def num_tokens(page: Frames) -> int:
            _, height_px, width_px, _ = page.rgb.shape
            size = image_size(width_px, height_px, config.image, look.max_frame_tokens)
            return size.num_tokens + num_around

        return pack_pages(pages, windows.pages_per_prompt, num_tokens, room - num_text)

    def _ask(
        self,
        seed_id: str,
        look: FrameView,
        media: Sequence[Frames],
        items: Iterable[Item],
        text: Callable[[], str],
    ) -> dict[str, Any]:
        """The columns of one prompt that shows the frames of a row's media."""
        try:
            prompt = self._processor.prompt(
                [*items, text()],
                system=self._instructions.system,
                max_frame_tokens=look.max_frame_tokens,
            )
        except PromptError as error:
            return _failure(error)
        return {
            **encode_prompt(prompt),
            **_facts(media),
            "num_visual_tokens": prompt.num_patches // 4,
            "seed": row_seed(self._seed, seed_id),
        }

    def _text(self, own: str | None) -> str:
        text = self._instructions.prompt if own is None else own
        if not text.strip():
            raise PromptError("bad_prompt", "the row's prompt is empty")
        return text


@dataclass(frozen=True)
class _Asked:
    """One part of a row."""

    question: int
    seed_id: str
    look: FrameView
    text: Callable[[], str]  # raises PromptError


def _require_usable(row: Mapping[str, Any]) -> None:
    if row["error"] is not None:
        raise row["error"]


def _share_pixels(parts: Sequence[dict[str, Any]], shown: Sequence[Sequence[Frames]]) -> None:
    """Leave pixels out that are those of the nearest part before that has some; add the facts."""
    last: Sequence[Frames] | None = None
    for part, media in zip(parts, shown, strict=True):
        part.update(_facts(media))  # also where the prompt failed
        if "prompt_patches" not in part:
            continue
        if media is last:
            part["prompt_patches"] = None
        last = media


def shown(media: Sequence[Frames], timestamps: Timestamps) -> Iterator[Item]:
    """Each frame with its time before it."""
    as_text = _TIMESTAMPS[timestamps]
    for frames in media:
        for time_s, frame in zip(frames.timestamps_s.tolist(), frames.rgb, strict=True):
            yield as_text(time_s)
            yield frame


def _numbered(window: Window) -> Iterator[Item]:
    """Each page with its number before it."""
    for page, frames in enumerate(window.media, int(window.start) + 1):
        yield page_line(page)
        yield frames.rgb[0]


def _failure(error: MediaError | PromptError) -> dict[str, Any]:
    return {
        "status": Status.ERROR.value,
        "error_code": ErrorCode(error.code).value,
        "error": error.message.encode(errors="replace").decode(),  # it may quote a file's name
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


_TIMESTAMPS: Mapping[Timestamps, Callable[[float], str]] = {
    "none": lambda _: "",
    "seconds": lambda time_s: f"{time_s:.1f}s ",
    "mm:ss": _as_clock,
}
