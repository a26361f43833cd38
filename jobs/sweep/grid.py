r"""Read the grid of a sweep: options of the job with several values each, which give cells.

frames: [1, 2, 4, 8]          # frames and fps form one axis
fps: 2
frame-tokens: [64, 256]
timestamps: [none, seconds]
prompt:                       # a text, a list of texts, or texts by name
  short: "{question}\n{options}\nAnswer with the letter."
expert-parallel: [1, 2]       # each value needs a run of its own
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.cli.config_file import overlay, read_mapping, refuse_other_name
from jobs.cli.options import Parser

# Settings of the ranks: cells that differ here need separate runs.
MACHINE = ("expert-parallel", "groups", "dispatch", "wire-dtype")
_FRAMES = ("frames", "fps")  # exclude each other
# The axes that change fastest come last, so that cells with the same frames are neighbours.
_AXES = (
    *MACHINE,
    *(*_FRAMES, "max-frames", "keyframes", "frame-tokens", "tokens-per-row", "timestamps"),
    *("prompt", "max-tokens", "temperature", "top-p", "samples"),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of settings."""

    name: str  # the settings that distinguish it
    settings: Mapping[str, Any]  # of the grid, by option
    options: argparse.Namespace  # of the job, with these settings

    @property
    def machine(self) -> tuple[Any, ...]:
        """The settings of its run; cells with equal ones share a run."""
        return tuple(self.settings.get(name) for name in MACHINE)


def read_grid(
    path: str, make_parser: Callable[[], Parser], options: argparse.Namespace, prompt: str
) -> tuple[Cell, ...]:
    """Read the cells of a grid in a YAML file.

    `options` and `prompt` are used for all that the grid does not set.

    Raises:
        ValueError: the file is not a grid, or has no cells; the message names it. A value that an
            option does not accept ends the process with a message, as on the command line.
    """
    try:
        grid = read_mapping(path)
        axes = list(_axes(grid))
    except ValueError as error:
        raise ValueError(f"--grid {path}: {error}") from error
    prompts = grid.get("prompt", prompt)
    texts = prompts if isinstance(prompts, dict) else {}
    several = {name for axis in axes if len(axis) > 1 for setting in axis for name in setting}
    cells = []
    for chosen in itertools.product(*axes):
        settings = {name: value for setting in chosen for name, value in setting.items()}
        parts = [f"{name}={value}" for name, value in settings.items() if name in several]
        values = {"prompt": prompt, **settings}
        values["prompt"] = texts.get(values["prompt"], values["prompt"])
        cell_options = overlay(make_parser, options, values, f"{path}: ")
        name = " ".join(parts).replace("\n", " ") or "all"
        cells.append(Cell(name=name, settings=settings, options=cell_options))
    return tuple(cells)


def _axes(grid: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Yield the settings of each axis, the slowest axis first."""
    if not grid:
        raise ValueError(
            "the file is empty; name at least one option, such as `frames: [1, 4, 16]`"
        )
    for name in grid:
        refuse_other_name("axis", name, _AXES)
    frames = [{name: value} for name in _FRAMES for value in _values(grid, name)]
    for name in _AXES:
        if name == "frames" and frames:
            yield frames
        elif name in grid and name not in _FRAMES:
            yield [{name: value} for value in _values(grid, name)]


def _values(grid: Mapping[str, Any], name: str) -> list[Any]:
    if name not in grid:
        return []
    values = grid[name]
    if isinstance(values, dict) and name == "prompt":
        values = list(values)
    values = values if isinstance(values, list) else [values]
    if not values:
        raise ValueError(f"{name} has no values, so the grid has no cells")
    for place, value in enumerate(values):
        if isinstance(value, list | dict) or value is None:
            raise ValueError(f"{name} takes values of text or numbers, got {value!r}")
        if value in values[:place]:
            raise ValueError(f"{name} has {value!r} twice")
    return values
