"""Decode again the frames and pages that the model saw, as thumbnails (`SourceDecoder`).

The media of each row is opened and decoded as the recipe says, at thumbnail size. If the times of
the frames, or the number of pages, differ from those that the output recorded, the row says so. No
thumbnail has more pixels than the model was given.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.cli.config_file import as_arguments
from jobs.cli.options import LIMITS, Parser, add_limits, media_limits
from jobs.review_page.clips import Clips
from jobs.review_page.display_size import DisplaySize
from jobs.review_page.row_frames import Picture, RowFrames, make_section_frames
from jobs.review_page.rows import Output
from jobs.review_page.sections import RowSections, Section, frame_views_of, windows_of
from pipeline.column_types import seconds_of
from pipeline.fetch.media_access import MediaAccess
from pipeline.input.manifest import in_known_order
from pipeline.input.plan import plan
from pipeline.input.reader import read_split
from pipeline.input.source import Source, open_source
from pipeline.media.display import FrameRequest
from pipeline.media.frames import Frames
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.windows import PageWindows, Span
from pipeline.output.ledger import IdSet, OutputIndex, committed_parts
from pipeline.output.store import LocalStore
from pipeline.schema import InputColumns

_SLICE_ROWS = 8
_ROWS_IN_MEMORY = 32

_MediaRow = tuple[str, Any, Span]  # row id, media, span in seconds


class SourceDecoder:
    """Decodes the frames of the rows of one output, with the limits and media rules of its run.

    `frame_px` is the longer side of a thumbnail. Of more than `max_frames` in a view of a row, or
    in all its windows or pages, that many are taken evenly. Pages are also kept with `page_px` as
    their longer side, which may be more than the model saw. `clips` makes small clips to play.
    """

    def __init__(
        self,
        output: Output,
        sections: Mapping[str, RowSections],
        source: Source,
        access: MediaAccess,
        limits: MediaLimits,
        *,
        frame_px: int,
        max_frames: int,
        page_px: int | None = None,
        clips: Clips | None = None,
    ) -> None:
        self._source = source
        self._access = access
        self._limits = limits
        self._views = frame_views_of(output.recipe)
        self._windows = windows_of(output.recipe)
        self._background = output.recipe.get("background")
        self._frame_px = frame_px
        self._max_frames = max_frames
        self._page_px = page_px if isinstance(self._windows, PageWindows) else None
        self._clips = None if isinstance(self._windows, PageWindows) else clips
        self._decoders: SimpleQueue[SandboxedDecoder] = SimpleQueue()
        # Rows that failed before the model saw anything show their own error.
        self._sections = {row_id: row for row_id, row in sections.items() if row.were_seen}

    def decode(self, num_threads: int) -> dict[str, RowFrames]:
        """Return the frames of all rows that the model saw, decoded in sandboxed processes."""
        frames: dict[str, RowFrames] = {}
        rows = self._media_rows()
        for _ in range(num_threads):
            self._decoders.put(SandboxedDecoder(self._limits))
        with ThreadPoolExecutor(num_threads) as pool:
            while some := list(itertools.islice(rows, _ROWS_IN_MEMORY)):
                ids = (row_id for row_id, *_ in some)
                frames.update(zip(ids, pool.map(self._decode_row, some), strict=True))
        for _ in range(num_threads):
            self._decoders.get().close()
        unseen = "no frames: the input no longer contains this row"
        return {row_id: frames.get(row_id, RowFrames(note=unseen)) for row_id in self._sections}

    def _media_rows(self) -> Iterator[_MediaRow]:
        """Yield id, media and span of each row to decode, in the order of the input."""
        columns = self._source.row_schema.columns
        only = IdSet()
        only.add(pa.array(self._sections, pa.string()))
        for split in plan(self._source, OutputIndex.empty(), only=only).splits:
            for rows in read_split(
                self._source.filesystem, self._source.row_schema, split, max_rows=_SLICE_ROWS
            ):
                for index, row_id in enumerate(rows["row_id"].to_pylist()):
                    span = (columns.start_s, columns.end_s)
                    start_s, end_s = (
                        None if name is None else seconds_of(rows[name][index]) for name in span
                    )
                    yield row_id, rows[columns.video][index].as_py(), (start_s, end_s)

    def _decode_row(self, media_row: _MediaRow) -> RowFrames:
        row_id, media, span_s = media_row
        row = self._sections[row_id]
        media = media if isinstance(media, list) else [media]
        try:
            decoded = self._decode_media(media, span_s, row)
            clip = None if self._clips is None else self._clip(media, span_s)
        except MediaError as error:
            return RowFrames(note=f"no frames: the media cannot be decoded now ({error.message})")
        note = None
        if not self._are_recorded(decoded, row):
            note = f"these are not the {self._kind} that the model saw: the media has changed"
        most = self._max_frames
        if self._windows is not None:
            most = max(1, most // len(row.shown))
        sections = [
            make_section_frames(self._pictures(decoded, section), most, self._shrink(section))
            for section in row.shown
        ]
        return RowFrames(sections=tuple(sections), note=note, clip=clip)

    def _shrink(self, section: Section) -> DisplaySize | None:
        """Return the size of a page as the model saw it, if pages are decoded larger."""
        if self._page_px is None:
            return None
        return DisplaySize(self._frame_px, section.seen_px)

    def _clip(self, media: Sequence[object], span_s: Span) -> bytes | None:
        """Return a small clip of the first video of a row; None if it is a picture."""
        assert self._clips is not None
        request = replace(self._clips.request, background=self._background)
        with self._opened(media[0]) as file, self._decoder() as decoder:
            (window,) = decoder.decode_windows(file, [request], span_s=span_s)
        return self._clips.encode(window.media[0])

    @contextmanager
    def _opened(self, value: object) -> Iterator[bytes | BinaryIO]:
        opened = self._access.open(value)
        with nullcontext(opened) if isinstance(opened, bytes) else closing(opened) as file:
            yield file

    @contextmanager
    def _decoder(self) -> Iterator[SandboxedDecoder]:
        decoder = self._decoders.get()
        try:
            yield decoder
        finally:
            self._decoders.put(decoder)

    def _decode_media(
        self, media: Sequence[object], span_s: Span, row: RowSections
    ) -> list[list[Frames]]:
        """Return the frames of each view, window or page of a row, decoded as a job does."""
        requests = [
            FrameRequest(
                sampling=view.frames,
                fit=self._fit(seen_px),
                background=self._background,
            )
            for view, seen_px in zip(self._views, self._seen_px(row), strict=True)
        ]
        decoded: list[list[Frames]] = []
        for number, value in enumerate(media):
            with self._opened(value) as file, self._decoder() as decoder:
                windows = decoder.decode_windows(
                    file, requests, windows=self._windows, span_s=span_s
                )
            shown = [list(window.media) for window in windows]
            if self._windows is None and number > 0:
                decoded = [before + more for before, more in zip(decoded, shown, strict=True)]
            else:
                decoded += shown
        return decoded

    def _fit(self, seen_px: float | None) -> DisplaySize:
        if self._page_px is not None:
            return DisplaySize(max(self._page_px, self._frame_px))
        return DisplaySize(self._frame_px, seen_px)

    def _seen_px(self, row: RowSections) -> list[float | None]:
        """Return the pixels of a frame for each view; windows and pages have one view."""
        sizes = [section.seen_px for section in row.shown]
        if self._windows is None:
            return sizes
        return [max((size for size in sizes if size is not None), default=None)]

    @property
    def _kind(self) -> str:
        return "pages" if isinstance(self._windows, PageWindows) else "frames"

    def _are_recorded(self, decoded: Sequence[Sequence[Frames]], row: RowSections) -> bool:
        """Tell whether the media gives the frames or pages that the output recorded."""
        if len(decoded) != row.num_places:
            return False
        if self._windows is None:
            return all(
                _same_times(_times_s(decoded[place]), section.times_s)
                for section in row.shown
                for place in section.places
            )
        if isinstance(self._windows, PageWindows):
            facts = [page[0].facts for page in decoded[:1] if page]
            return not facts or (facts[0].width_px, facts[0].height_px) == row.media_px
        shown = np.unique(_times_s([frames for window in decoded for frames in window]))
        return _same_times(shown, row.times_s)  # several windows may show the same frame

    def _pictures(self, decoded: Sequence[Sequence[Frames]], section: Section) -> Iterator[Picture]:
        """Yield the pictures of a section, each with its second or page."""
        for place in section.places:
            media = decoded[place] if place < len(decoded) else ()
            for number, frames in enumerate(media, 1):
                is_still = len(frames.rgb) == 1 and frames.facts.duration_s == 0.0
                for rgb, time_s in zip(frames.rgb, frames.timestamps_s, strict=True):
                    mark = f"{round(float(time_s), 2)} s"
                    if self._kind == "pages":
                        mark = f"page {place + 1}"
                    elif is_still:
                        mark = f"image {number}" if len(media) > 1 else ""
                    yield rgb, mark


def open_source_decoder(
    output: Output,
    sections: Mapping[str, RowSections],
    *,
    input_uri: str | None,
    allowed_uris: tuple[str, ...],
    frame_px: int,
    max_frames: int,
    page_px: int | None = None,
    clips: Clips | None = None,
) -> SourceDecoder:
    """Find the input of an output and the media rules of its run.

    Raises:
        ValueError: the input is unknown or cannot be opened, or the recipe has another version.
    """
    source = open_source_of(output, input_uri)
    try:
        limits = limits_of(output.run)
        access = MediaAccess(
            base=output.media_folder or source.folder,
            allowed_folders=tuple(_as_list(output.run.get("allow-folder"))),
            allowed_prefixes=(*_as_list(output.run.get("allow-uri")), *allowed_uris),
            max_bytes=limits.max_bytes,
        )
        return SourceDecoder(
            output,
            sections,
            source,
            access,
            limits,
            frame_px=frame_px,
            max_frames=max_frames,
            page_px=page_px,
            clips=clips,
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"{output.path} has a recipe of another version: {error}") from error


def open_source_of(output: Output, input_uri: str | None, every_column: bool = False) -> Source:
    """Open the input of an output, by `input_uri` or as `_run.yaml` names it.

    With `every_column`, all columns are read, media bytes too.

    Raises:
        ValueError: the input is unknown or cannot be opened, or the recipe has another version.
    """
    uri = input_uri or output.run.get("input")
    if not uri:
        raise ValueError(f"{output.path} does not say what its input was; name it with --input")
    try:
        source = open_source(
            uri,
            InputColumns(**output.recipe["columns"]),
            carry=None if every_column else (),
            keep_media=every_column,
            make_ids_unique=bool(output.recipe.get("make_ids_unique")),
            output=output.run.get("output") or str(output.path),  # the directory may be a copy
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"{output.path} has a recipe of another version: {error}") from error
    store = LocalStore(output.run_folder)
    return in_known_order(source, store, committed_parts(store))


def limits_of(run: Mapping[str, Any]) -> MediaLimits:
    """Return the limits on media that a run had, by its options; unknown ones have defaults.

    Raises:
        ValueError: a limit is out of its range.
    """
    parser = Parser(prog="review")
    parser.where = "_run.yaml: "
    add_limits(parser.add_argument_group())
    values = {name: value for name, value in run.items() if f"--{name}" in LIMITS}
    return media_limits(parser.parse_args(as_arguments(parser, values)))


def _times_s(media: Sequence[Frames]) -> NDArray[np.float64]:
    return np.concatenate([np.empty(0), *(frames.timestamps_s for frames in media)])


def _same_times(decoded_s: NDArray[np.float64], recorded_s: Sequence[float] | None) -> bool:
    if recorded_s is None or len(decoded_s) != len(recorded_s):
        return False
    return bool(np.allclose(decoded_s, recorded_s, atol=1e-6))


def _as_list(value: Any) -> list[str]:
    """Return the values of an option that may be repeated, as `_run.yaml` stores it."""
    if value is None:
        return []
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]
