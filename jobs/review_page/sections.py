"""Split a row into sections: the frames of each prompt and its answers, as the output recorded.

    one prompt         one section
    several prompts    a section for each way of sampling the row, with the prompts that share it
    --window-s         a section for each window
    a document         a section for each prompt, of one page or several

If there are very many sections, the page shows some, evenly over the row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from jobs.review_page.rows import Output, as_json
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.windows import PageWindows, TimeWindows, Windows
from pipeline.prompts.frame_view import FrameView
from pipeline.prompts.named_prompts import ANSWERS
from pipeline.prompts.window_answers import PAGE_WINDOWS_FIELD, PAGES_FIELD, TIMELINE_FIELD

Item = TypeVar("Item")
_TOKEN_PX = 28 * 28  # a visual token is 2 x 2 patches of 14 x 14 pixels
_Row = Mapping[str, Any]
_Recipe = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A text, or the error in its place."""

    name: str | None = None  # prompt or page, if the section has several answers
    text: str | None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Section:
    """Frames or pages that the model saw together, and its answers about them."""

    label: str | None = None  # None if the row has no other section
    places: range  # indices of its view, its window or its pages among all of the row
    answers: tuple[Answer, ...] = ()  # empty if the answer is the caption of the row
    times_s: Sequence[float] | None = None  # times of the frames of a view
    seen_px: float | None = None  # mean pixels of a frame as the model saw it


@dataclass(frozen=True, kw_only=True)
class RowSections:
    """The sections of one row that the page shows."""

    shown: tuple[Section, ...]
    num_sections: int  # of the row, also those that are not shown
    num_places: int  # views, windows or pages of the row
    times_s: Sequence[float] | None  # times of the frames of all windows, each once
    media_px: tuple[int | None, int | None]  # width and height of the first video, image or page
    are_pages: bool
    are_caption: bool  # whether the caption of the row lists exactly their answers

    @property
    def were_seen(self) -> bool:
        """Whether the model saw frames or pages of the row."""
        return any(section.times_s is None or len(section.times_s) > 0 for section in self.shown)


def sections_of_rows(output: Output, most: int) -> dict[str, RowSections]:
    """Return the sections of each row by its id: all views, or `most` windows or page prompts.

    Raises:
        ValueError: the recipe has another version.
    """
    try:
        rows = output.rows.to_pylist()
        return {row["row_id"]: _sections(row, output.recipe, most) for row in rows}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{output.path} has a recipe of another version: {error}") from error


def _sections(row: _Row, recipe: _Recipe, most: int) -> RowSections:
    windows = windows_of(recipe)
    if isinstance(windows, TimeWindows):
        sections = list(_time_windows(row))
    elif isinstance(windows, PageWindows):
        sections = list(_page_windows(row))
    else:
        sections = list(_view_sections(row, recipe))
    shown = sections if windows is None else evenly(sections, most)
    is_merged = isinstance(windows, TimeWindows) and windows.merge is not None
    return RowSections(
        shown=tuple(shown),
        num_sections=len(sections),
        num_places=sections[-1].places.stop if sections else 0,
        times_s=row["frame_times_s"],
        media_px=(row.get("media_width"), row.get("media_height")),
        are_pages=isinstance(windows, PageWindows),
        are_caption=windows is not None and not is_merged and len(shown) == len(sections),
    )


def windows_of(recipe: _Recipe) -> Windows | None:
    """Return the windows of a run.

    Raises:
        TypeError: the recipe has another version.
    """
    fields = recipe.get("windows")
    if not fields:
        return None
    return TimeWindows(**fields) if "length_s" in fields else PageWindows(**fields)


def frame_views_of(recipe: _Recipe) -> list[FrameView]:
    """Return the different ways of sampling a row, without the style of timestamps, in order."""
    asked = [question.get("look") or recipe for question in recipe.get("questions", ())]
    return list(dict.fromkeys(_frame_view(each) for each in asked or [recipe]))


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return all items, or `most` of them evenly, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, most).round()]


def prompt_of(recipe: _Recipe) -> str | None:
    """Return the prompt of rows that have none of their own; several prompts are named."""
    names: dict[str, list[str]] = {}
    for question in recipe.get("questions", ()):
        names.setdefault(question["text"], []).append(question["name"])
    if not names:
        return recipe.get("prompt")
    return "\n".join(f"{', '.join(each)}: {text}" for text, each in names.items())


def describe(recipe: _Recipe) -> str:
    """Describe a recipe in one line, for the head of the page."""
    sampling, windows = recipe.get("sampling", {}), windows_of(recipe)
    views = [_described(view) for view in frame_views_of(recipe)]
    shown = views[0] if len(views) == 1 else f"{len(views)} views"
    if isinstance(windows, PageWindows):
        many = windows.pages_per_prompt or "as many as fit"
        tokens = recipe.get("max_frame_tokens") or "all"
        shown = f"pages of at most {tokens} tokens, {many} a prompt"
    elif isinstance(windows, TimeWindows):
        shown = f"windows of {windows.length_s:g} s, each {shown}"
    return (
        f"{shown}, timestamps {recipe.get('timestamps')}, temperature "
        f"{sampling.get('temperature')}, max tokens {sampling.get('max_tokens')}"
    )


def _described(view: FrameView) -> str:
    frames = view.frames
    many = "1 frame" if frames.num_frames == 1 else f"{frames.num_frames} frames"
    if frames.at_s is not None:
        many = f"frames at {', '.join(f'{at:g}' for at in frames.at_s)} s"
    elif frames.fps is not None:
        many = f"{frames.fps:g} fps, at most {frames.max_frames} frames"
    if frames.keyframes_only:
        many += " (keyframes)"
    share = "" if view.max_row_tokens is None else f", {view.max_row_tokens} together"
    return f"{many} of at most {view.max_frame_tokens or 'all'} tokens{share}"


def _frame_view(fields: Mapping[str, Any]) -> FrameView:
    """Return the frame view in a recipe, as far as it affects pixels."""
    frames = dict(fields["frames"])
    if frames.get("at_s") is not None:
        frames["at_s"] = tuple(frames["at_s"])
    view = FrameView(
        frames=FrameSampling(**frames),
        timestamps="none",
        max_frame_tokens=fields["max_frame_tokens"],
        max_row_tokens=fields.get("max_row_tokens"),
    )
    return replace(view, frames=view.affordable_frames)


def _view_sections(row: _Row, recipe: _Recipe) -> Iterator[Section]:
    """Yield a section for each frame view of the recipe, with the answers of its prompts."""
    questions = {each["name"]: each for each in recipe.get("questions", ())}
    views = frame_views_of(recipe)
    settings = _settings(recipe)
    numbers: dict[str, int] = {}
    answers: dict[FrameView, list[Answer]] = {view: [] for view in views}
    first: dict[FrameView, _Row] = {}
    for details in row[ANSWERS] if questions else ():
        name = details["question"]
        view = _frame_view(questions[name].get("look") or recipe)
        number = numbers[name] = numbers.get(name, -1) + 1
        answers[view].append(_of_question(row, questions[name], number, settings[name], details))
        if view not in first or first[view].get("frame_times_s") is None:
            first[view] = details
    for place, view in enumerate(views):
        details = row if "frame_times_s" not in first.get(view, {}) else first[view]
        yield Section(
            label=_described(view) if len(views) > 1 else None,
            places=range(place, place + 1),
            answers=tuple(answers[view]),
            times_s=details["frame_times_s"] or (),
            seen_px=_seen_px(details, len(details["frame_times_s"] or ())),
        )


def _settings(recipe: _Recipe) -> dict[str, str]:
    """Return, by prompt of a sweep, the settings that differ besides frames and texts."""
    values = {
        each["name"]: {
            "timestamps": each["look"]["timestamps"],
            **{name: each["sampling"][name] for name in ("temperature", "top_p", "n")},
        }
        for each in recipe.get("questions", ())
        if each.get("look")
    }
    settings = {each["name"]: "" for each in recipe.get("questions", ())}
    for name in next(iter(values.values()), ()):
        if len({str(each[name]) for each in values.values()}) > 1:
            settings |= {
                cell: f"{settings[cell]}, {name} {each[name]}" for cell, each in values.items()
            }
    return settings


def _of_question(
    row: _Row, question: Mapping[str, Any], number: int, settings: str, details: Mapping[str, Any]
) -> Answer:
    """Make the answer to a prompt, or to its item `number`; a typed value is shown as JSON."""
    name, value = question["name"], row[question["name"]]
    if question.get("over") is not None:
        name, value = f"{name} {number + 1}", value[number]
    if value is None:
        value = details.get("text")  # text that does not fit the type of the column
    text = value if value is None or isinstance(value, str) else as_json(value)
    return Answer(name=name + settings, text=text, error=_error(details))


def _time_windows(row: _Row) -> Iterator[Section]:
    width_px, height_px = row.get("frame_width"), row.get("frame_height")
    seen_px = None if width_px is None or height_px is None else width_px * height_px
    for number, window in enumerate(row[TIMELINE_FIELD.name] or ()):
        yield Section(
            label=time_label(window),
            places=range(number, number + 1),
            answers=(Answer(text=window["caption"], error=_error(window)),),
            seen_px=seen_px,
        )


def time_label(window: Mapping[str, Any]) -> str:
    """Return the label of a window of a video, by which verdicts name it."""
    return f"{window['start_s']:.1f} - {window['end_s']:.1f} s"


def _page_windows(row: _Row) -> Iterator[Section]:
    """Yield a section for each prompt, with the text of each of its pages."""
    texts = row[PAGES_FIELD.name]
    for window in row[PAGE_WINDOWS_FIELD.name] or ():
        first, last = window["first_page"], window["last_page"]
        error = _error(window)
        answers = [Answer(text=texts[first - 1], error=error)]
        if last > first:
            pages = range(first, last + 1)
            answers = [Answer(name=f"page {page}", text=texts[page - 1]) for page in pages]
            answers[0] = replace(answers[0], error=error)
        yield Section(
            label=f"page {first}" if first == last else f"pages {first} to {last}",
            places=range(first - 1, last),
            answers=tuple(each for each in answers if each.text is not None or each.error),
            seen_px=_seen_px(window, last - first + 1),
        )


def _seen_px(details: _Row, num_frames: int) -> float | None:
    num_tokens = details.get("num_visual_tokens")
    return num_tokens * _TOKEN_PX / num_frames if num_tokens and num_frames else None


def _error(details: Mapping[str, Any]) -> str | None:
    return details["error"] and f"{details['error_code']}: {details['error']}"
