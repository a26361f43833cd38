"""Turn a sweep into work for the pipeline: clips with all their questions, and runs of cells.

    dataset               -->  _clips.parquet     -->  one run for each setting of the ranks
    (one row a question)       (one row a clip)        (one prompt for each cell)

A run decodes each clip once, for all questions about it and all cells.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.cli.pipeline_config import pipeline_config
from jobs.sweep.grid import Cell
from jobs.sweep.layouts import LETTERS, Dataset, Item, lettered
from jobs.sweep.names import CLIPS
from pipeline.config import PipelineConfig
from pipeline.output.store import Store
from pipeline.prompts.named_prompts import NamedPrompt
from pipeline.prompts.template import fill, template_fields
from pipeline.schema import InputColumns

_FIELDS = ("question", "options")  # the names that a prompt may contain


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video, or a span of one, and all questions about it."""

    id: str
    video: Any
    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A sweep as the pipeline processes it."""

    clips: tuple[Clip, ...]
    prompts: tuple[str, ...]  # the different prompts of all cells
    cells: tuple[Cell, ...]
    video_type: pa.DataType
    folder: str

    @property
    def settings(self) -> list[str]:
        """The options that the grid sets; they become columns of the answers."""
        return list(dict.fromkeys(name for cell in self.cells for name in cell.settings))

    @property
    def runs(self) -> dict[str, list[Cell]]:
        """The cells of each run, by the folder of the run below the output."""
        runs: dict[str, list[Cell]] = {}
        for cell in self.cells:
            parts = [f"{value}" for value in cell.machine if value is not None]
            runs.setdefault("_".join(["_runs", *parts]), []).append(cell)
        return runs

    def __str__(self) -> str:
        num_items = sum(len(clip.items) for clip in self.clips)
        runs = "one run" if len(self.runs) == 1 else f"{len(self.runs)} runs"
        return (
            f"{num_items} questions about {len(self.clips)} clips in {len(self.cells)} cells: "
            f"{num_items * len(self.cells)} answers in {runs}, each of which decodes a clip once"
        )


def plan_work(dataset: Dataset, cells: tuple[Cell, ...]) -> Work:
    """Group the questions by clip.

    Raises:
        ValueError: a prompt contains an unknown name.
    """
    prompts = tuple(dict.fromkeys(cell.options.prompt for cell in cells))
    for prompt in prompts:
        for field in template_fields(prompt):
            if field not in _FIELDS:
                names = " and ".join(f"{{{name}}}" for name in _FIELDS)
                raise ValueError(
                    f"the prompt {prompt!r} contains {{{field}}}; it may contain {names}"
                )
    joined: dict[str, list[Item]] = {}
    for item in dataset.items:
        joined.setdefault(f"{video_name(item.video)}@{item.span_s}", []).append(item)
    clips = tuple(
        Clip(id=_clip_id(key, items, prompts), video=items[0].video, items=tuple(items))
        for key, items in joined.items()
    )
    return Work(
        clips=clips,
        prompts=prompts,
        cells=cells,
        video_type=dataset.video_type,
        folder=dataset.folder,
    )


def _clip_id(key: str, items: Sequence[Item], prompts: Sequence[str]) -> str:
    """Return an id that changes with all that is asked, so that old answers are never reused."""
    asked = json.dumps([key, [(item.id, item.question, item.options) for item in items], prompts])
    return hashlib.sha256(asked.encode()).hexdigest()[:20]


def video_name(video: Any) -> str:
    """Return a video as text: its path, or a hash of its bytes."""
    if isinstance(video, Mapping):  # as Hugging Face datasets store media; the bytes win
        video = video.get("path") if video.get("bytes") is None else video["bytes"]
    if isinstance(video, bytes):
        return hashlib.sha256(video).hexdigest()[:20]
    return str(video)


def write_clips(work: Work, store: Store) -> None:
    """Write the input of the runs."""
    columns = {
        "clip": pa.array([clip.id for clip in work.clips]),
        "video": pa.array([clip.video for clip in work.clips], work.video_type),
        "start_s": pa.array([clip.items[0].span_s[0] for clip in work.clips], pa.float64()),
        "end_s": pa.array([clip.items[0].span_s[1] for clip in work.clips], pa.float64()),
    }
    for number, prompt in enumerate(work.prompts):
        texts = [[_asked(prompt, item) for item in clip.items] for clip in work.clips]
        columns[_column(number)] = pa.array(texts, pa.list_(pa.string()))
    file = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), file, row_group_size=64)
    store.write(CLIPS, file.getvalue())


def _asked(prompt: str, item: Item) -> str:
    return fill(prompt, {"question": item.question, "options": lettered(item.options)})


def _column(number: int) -> str:
    return f"asked_{number}"


def question_name(number: int) -> str:
    """Return the column of a run that holds the answers of a cell."""
    return f"cell_{number}"


def config_of(work: Work, cells: Sequence[Cell], uri: str, folder: str) -> PipelineConfig:
    """Make the configuration of a run over cells with the same settings of the ranks.

    `uri` is the output of the sweep, and `folder`, below it, that of the run.

    Raises:
        ValueError: an option is invalid; the message names the cell.
    """
    num_options = max(len(item.options) for clip in work.clips for item in clip.items)
    named_prompts = []
    for number, cell in enumerate(cells):
        try:
            own = pipeline_config(cell.options)
        except ValueError as error:
            raise ValueError(f"cell {cell.name}: {error}") from error
        column = _column(work.prompts.index(cell.options.prompt))
        named_prompts.append(
            NamedPrompt(
                name=question_name(number),
                text=f"{{{column}}}",
                over=column,
                sampling=replace(own.sampling, choices=tuple(LETTERS[:num_options])),
                view=own.instructions.view,
            )
        )
    base = pipeline_config(argparse.Namespace(**{**vars(cells[0].options), "limit": None}))
    return replace(
        base,
        input=f"{uri}/{CLIPS}",
        output=f"{uri}/{folder}",
        columns=InputColumns(
            id="clip",
            start_s="start_s",
            end_s="end_s",
            lists=tuple(_column(number) for number in range(len(work.prompts))),
        ),
        carry=(),
        media_folder=work.folder,
        instructions=replace(base.instructions, named_prompts=tuple(named_prompts)),
        run_yaml=None,
    )
