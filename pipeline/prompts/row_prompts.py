"""The prompts of one row of the input, made in one of three ways that the instructions choose.

    OnePrompt      one prompt a row
    NamedPrompts   each named prompt, once, or once for each text of a list; `answers` joins them
    WindowPrompts  one prompt for each window of a video, or for each few pages of a document

Each is called with a row and gives the columns of its prompts. A row that failed as a whole gives
the columns of that failure in place of them, and a prompt that failed alone those of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.inputs.prompt import PromptError
from pipeline.media.frames import Frames
from pipeline.media.limits import MediaError
from pipeline.media.windows import PageWindows, Window, Windows
from pipeline.prompts.frame_loader import LoadsFrames
from pipeline.prompts.frame_view import FrameView
from pipeline.prompts.input_row import InputRow
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.named_prompts import NamedPrompt
from pipeline.prompts.pages import PAGES_REQUEST, pack_for_context, page_items
from pipeline.prompts.prompt_builder import (
    Columns,
    PromptBuilder,
    failure_columns,
    frame_items,
    media_columns,
)
from pipeline.prompts.template import fill
from pipeline.schema import NAMED_PROMPT_FIELD, PROMPT_NUMBER_FIELD, WINDOW_FIELD

RowPrompts = Callable[[InputRow], list[Columns]]


def row_prompts(
    instructions: Instructions, loader: LoadsFrames, builder: PromptBuilder
) -> RowPrompts:
    """Choose the way in which the instructions make prompts of a row."""
    if instructions.named_prompts:
        return NamedPrompts(instructions, loader, builder)
    if instructions.windows is not None:
        return WindowPrompts(instructions, loader, builder, instructions.windows)
    return OnePrompt(instructions, loader, builder)


@dataclass(frozen=True)
class _PromptMaker:
    """The parts that the three ways have in common."""

    instructions: Instructions
    loader: LoadsFrames
    builder: PromptBuilder

    def _text(self, row: InputRow) -> str:
        """The row's own prompt, or that of the run; a PromptError if its own is empty."""
        text = self.instructions.prompt if row.prompt is None else row.prompt
        if not text.strip():
            raise PromptError("bad_prompt", "the row's prompt is empty")
        return text


class OnePrompt(_PromptMaker):
    """Makes one prompt of a row, which shows all its media."""

    def __call__(self, row: InputRow) -> list[Columns]:
        """Make the prompt of the row."""
        view = self.instructions.view
        try:
            row.require_usable()
            text = self._text(row)
            media = self.loader.frames(row, [view])[view]
            items = frame_items(media, view.timestamps)
            return [self.builder.build(row.row_id, view, media, items, text)]
        except (MediaError, PromptError) as error:
            return [failure_columns(error)]


class NamedPrompts(_PromptMaker):
    """Makes all named prompts of a row, over one decoding of its media."""

    def __call__(self, row: InputRow) -> list[Columns]:
        """Make the prompts of the row, with their number and that of their `NamedPrompt`."""
        uses = list(self._uses(row))
        try:
            row.require_usable()
            media_of = self.loader.frames(row, self.instructions.views)
        except (MediaError, PromptError) as error:
            prompts = [failure_columns(error) for _ in uses]
        else:
            prompts = list(self._build(uses, media_of))
        for number, (prompt, use) in enumerate(zip(prompts, uses, strict=True)):
            prompt |= {PROMPT_NUMBER_FIELD.name: number, NAMED_PROMPT_FIELD.name: use.number}
        return prompts

    def _uses(self, row: InputRow) -> Iterator["_Use"]:
        for number, prompt in enumerate(self.instructions.named_prompts):
            view = prompt.view or self.instructions.view
            for place, values in enumerate(prompt.values_of(row.values)):
                name = prompt.name if prompt.over is None else f"{prompt.name}/{place}"
                yield _Use(number, prompt, f"{row.row_id}/{name}", view, values)

    def _build(
        self, uses: Sequence["_Use"], media_of: Mapping[FrameView, Sequence[Frames]]
    ) -> Iterator[Columns]:
        """Build each prompt, without its pixels where the prompt before it shows the same."""
        shown_before: Sequence[Frames] | None = None
        for use in uses:
            media = media_of[use.view]
            items = frame_items(media, use.view.timestamps)
            try:
                text = fill(use.prompt.text, use.values)
                columns = self.builder.build(use.seed_id, use.view, media, items, text)
            except PromptError as error:
                yield failure_columns(error) | media_columns(media)
                continue
            if media is shown_before:
                columns["prompt_patches"] = None  # `decode_prompt` takes those of the prompt before
            shown_before = media
            yield columns


@dataclass(frozen=True)
class _Use:
    """One use of a named prompt in a row; a prompt over a list is used once for each text."""

    number: int  # of the named prompt
    prompt: NamedPrompt
    seed_id: str
    view: FrameView
    values: Mapping[str, Any]  # for the template


@dataclass(frozen=True)
class WindowPrompts(_PromptMaker):
    """Makes one prompt for each window of a row."""

    windows: Windows

    def __call__(self, row: InputRow) -> list[Columns]:
        """Make the prompts of the row, with their number and the window that each shows."""
        try:
            row.require_usable()
            text = self._text(row)
            windows = list(self._windows(row, text))
        except (MediaError, PromptError) as error:
            return [failure_columns(error) | {PROMPT_NUMBER_FIELD.name: 0}]
        prompts = []
        for number, window in enumerate(windows):
            prompt = self._prompt(f"{row.row_id}/{number}", window, text)
            span = {"start": window.start, "end": window.end}
            prompts.append(prompt | {PROMPT_NUMBER_FIELD.name: number, WINDOW_FIELD.name: span})
        return prompts

    def _windows(self, row: InputRow, text: str) -> Iterable[Window]:
        view = self.instructions.view
        found = self.loader.windows(row, view, self.windows)
        if not isinstance(self.windows, PageWindows):
            return found
        return pack_for_context(found, self.windows, text, view, self.builder)

    def _prompt(self, seed_id: str, window: Window, text: str) -> Columns:
        if window.error is not None:
            return failure_columns(window.error)
        view = self.instructions.view
        items = frame_items(window.media, view.timestamps)
        if isinstance(self.windows, PageWindows) and len(window.media) > 1:
            items, text = page_items(window), text + PAGES_REQUEST
        try:
            return self.builder.build(seed_id, view, window.media, items, text)
        except PromptError as error:
            return failure_columns(error)
