"""The frames that the model saw, as strips of JPEG thumbnails.

The media of each row is opened and decoded again as the recipe says, at thumbnail size; the times
of the frames must be those that the output recorded, else the row says so.
"""

import io
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from jobs.review_page.rows import Output
from jobs.review_page.thumbnail import Thumbnail
from pipeline.decoder import Decoder
from pipeline.fetch import MediaAccess
from pipeline.frames import Frames
from pipeline.ledger import Held, IdSet
from pipeline.limits import MediaError
from pipeline.look import Look
from pipeline.sampling import FrameSampling
from pipeline.schema import InputColumns
from pipeline.source import Source, open_source, plan, read_piece
from pipeline.view import Shot
from pipeline.windows import Span, TimeWindows

_FRAMES_PER_STRIP = 8
_JPEG_QUALITY = 70
_SLICE_ROWS = 8
_SCENES_IN_MEMORY = 32

_Scene = tuple[str, Any, Span]  # row id, media, span in seconds


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Up to 8 frames side by side in one JPEG."""

    jpeg: bytes
    times_s: tuple[float, ...]
    width_px: int  # of one frame


@dataclass(frozen=True, kw_only=True)
class Shots:
    """The thumbnails of one row, or a note why there are none or other ones."""

    strips: tuple[Strip, ...] = ()
    note: str | None = None


class Camera:
    """Takes the shots of the rows of one output.

    Args:
        output: whose recipe and recorded times count.
        source: the input of the run.
        access: where media may come from.
        frame_px: the longer side of a thumbnail.
        max_frames: of one row; where the model saw more, so many of them evenly.
    """

    def __init__(
        self, output: Output, source: Source, access: MediaAccess, *, frame_px: int, max_frames: int
    ) -> None:
        self._source = source
        self._access = access
        self._sampling = Look(
            frames=FrameSampling(**output.recipe["frames"]),
            max_row_tokens=output.recipe.get("max_row_tokens"),
        ).affordable_frames
        windows = output.recipe.get("windows") or {}
        self._windows = TimeWindows(**windows) if "length_s" in windows else None
        self._fit = Thumbnail(frame_px)
        self._decoders: SimpleQueue[Decoder] = SimpleQueue()
        self._max_frames = max_frames
        rows = output.rows.select(["row_id", "frame_times_s"]).to_pylist()
        # Rows that failed before they had frames say so themselves.
        self._times_s: dict[str, list[float]] = {
            row["row_id"]: row["frame_times_s"] for row in rows if row["frame_times_s"]
        }

    def shoot(self, num_threads: int) -> dict[str, Shots]:
        """The shots of all rows that the model saw frames of, each decoder in a process."""
        shots: dict[str, Shots] = {}
        scenes = self._scenes()
        for _ in range(num_threads):
            self._decoders.put(Decoder())
        with ThreadPoolExecutor(num_threads) as pool:
            while some := list(itertools.islice(scenes, _SCENES_IN_MEMORY)):
                shots.update(
                    zip((row_id for row_id, *_ in some), pool.map(self._take, some), strict=True)
                )
        for _ in range(num_threads):
            self._decoders.get().close()
        unseen = "no frames: the input has no such row any more"
        return {row_id: shots.get(row_id, Shots(note=unseen)) for row_id in self._times_s}

    def _scenes(self) -> Iterator[_Scene]:
        """Id, media and span of each row to shoot, in the input's order."""
        columns = self._source.layout.columns
        only = IdSet()
        only.add(pa.array(self._times_s, pa.string()))
        for piece in plan(self._source, Held.nothing(), only=only).pieces:
            for rows in read_piece(
                self._source.filesystem, self._source.layout, piece, max_rows=_SLICE_ROWS
            ):
                for index, row_id in enumerate(rows["row_id"].to_pylist()):
                    span = (columns.start_s, columns.end_s)
                    start_s, end_s = (_value(rows, name, index) for name in span)
                    yield row_id, _value(rows, columns.video, index), (start_s, end_s)

    def _take(self, scene: _Scene) -> Shots:
        row_id, video, span_s = scene
        recorded = self._times_s[row_id]
        media = video if isinstance(video, list) else [video]
        try:
            shown = [frames for each in media for frames in self._decode(each, span_s)]
        except MediaError as error:
            return Shots(note=f"no frames: the media cannot be decoded now ({error.message})")
        note = None
        times_s = np.concatenate([each.timestamps_s for each in shown])
        if self._windows is not None:
            times_s = np.unique(times_s)  # several may show the same frame
        if not _same_times(times_s, recorded):
            note = "these are not the frames that the model saw: the media changed since"
        most = max(1, self._max_frames // len(shown))
        strips = [strip for f in shown for strip in make_strips(f.rgb, f.timestamps_s, most)]
        return Shots(strips=tuple(strips), note=note)

    def _decode(self, value: object, span_s: Span) -> list[Frames]:
        """The frames of each window, or of the whole; in a process of its own, as a job does."""
        media = self._access.open(value)
        decoder = self._decoders.get()
        shot = Shot(sampling=self._sampling, fit=self._fit)
        try:
            windows = decoder.shoot_windows(media, [shot], windows=self._windows, span_s=span_s)
            return [frames for window in windows for frames in window.media]
        finally:
            self._decoders.put(decoder)
            if not isinstance(media, bytes):
                media.close()


def open_camera(
    output: Output,
    *,
    input_uri: str | None,
    allowed_uris: tuple[str, ...],
    frame_px: int,
    max_frames: int,
) -> Camera:
    """Find the input of an output and the media rules of its run.

    Raises:
        ValueError: the input is unknown or cannot be opened, or the recipe is of another version.
    """
    uri = input_uri or output.run.get("input")
    if not uri:
        raise ValueError(f"{output.path} does not say what its input was; name it with --input")
    try:
        columns = InputColumns(**output.recipe["columns"])
        source = open_source(uri, columns, carry=())
        access = MediaAccess(
            base=source.folder,
            allowed_folders=tuple(_as_list(output.run.get("allow-folder"))),
            allowed_prefixes=(*_as_list(output.run.get("allow-uri")), *allowed_uris),
        )
        return Camera(output, source, access, frame_px=frame_px, max_frames=max_frames)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{output.path} has a recipe of another version: {error}") from error


def make_strips(
    rgb: NDArray[np.uint8], timestamps_s: NDArray[np.float64], max_frames: int
) -> tuple[Strip, ...]:
    """Frames [I, H, W, 3] as JPEG strips; of more than `max_frames`, so many evenly."""
    chosen = np.arange(len(rgb))
    if len(rgb) > max_frames:
        chosen = np.unique(np.linspace(0, len(rgb) - 1, max_frames).round().astype(int))
    strips = []
    for first in range(0, len(chosen), _FRAMES_PER_STRIP):
        here = chosen[first : first + _FRAMES_PER_STRIP]
        file = io.BytesIO()
        Image.fromarray(np.concatenate(rgb[here], axis=1)).save(
            file, "JPEG", quality=_JPEG_QUALITY, optimize=True
        )
        times = tuple(round(float(time), 2) for time in timestamps_s[here])
        strips.append(Strip(jpeg=file.getvalue(), times_s=times, width_px=rgb.shape[2]))
    return tuple(strips)


def _value(rows: pa.Table, name: str | None, index: int) -> Any:
    return None if name is None else rows[name][index].as_py()


def _same_times(taken_s: NDArray[np.float64], recorded_s: list[float]) -> bool:
    return len(taken_s) == len(recorded_s) and bool(np.allclose(taken_s, recorded_s, atol=1e-6))


def _as_list(value: Any) -> list[str]:
    """An option that may be repeated, as `_run.yaml` has it."""
    if value is None:
        return []
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def describe(recipe: Mapping[str, Any]) -> str:
    """A recipe in one line, for the head of the page."""
    frames = recipe.get("frames", {})
    how_many = frames.get("num_frames") or f"{frames.get('fps')} fps, at most "
    if not frames.get("num_frames"):
        how_many = f"{how_many}{frames.get('max_frames')}"
    sampling = recipe.get("sampling", {})
    return (
        f"{how_many} frames of at most {recipe.get('max_frame_tokens') or 'all'} tokens, "
        f"timestamps {recipe.get('timestamps')}, temperature {sampling.get('temperature')}, "
        f"max tokens {sampling.get('max_tokens')}"
    )
