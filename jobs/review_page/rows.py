"""Read an output directory for a review: some of its rows, its recipe, and where its input was."""

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from jobs.sweep.names import CLIPS

_OPTIONS = "_run.yaml"

RESULTS = (
    "row_id", "caption", "reasoning", "status", "error_code", "error", "finish_reason",
    "num_prompt_tokens", "num_generated_tokens", "frame_times_s", "mean_logprob", "min_logprob",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Output:
    """The rows of an output directory to show, and how they were made."""

    path: Path
    run_folder: Path  # with the files of a run beside the parts: the path, or its first shard
    recipe: Mapping[str, Any]
    recipe_sha256: str
    run: Mapping[str, Any]  # the options of the run by name; empty if unknown
    media_folder: str | None  # where relative paths of media start; None: the folder of the input
    rows: pa.Table  # all columns, in natural order of the row ids
    num_rows: int  # of the whole output

    @property
    def name(self) -> str:
        """The last two components of the path."""
        return "/".join(self.path.parts[-2:])

    @property
    def extra(self) -> list[str]:
        """The columns that the page shows as further facts."""
        return [name for name in self.rows.column_names if name not in (*RESULTS, "row_digest")]


def read_output(
    path: Path,
    *,
    max_rows: int | None = None,
    seed: int = 0,
    status: str | None = None,
    only: list[str] | None = None,
) -> Output:
    """Read rows of an output directory: only those with this status, or only these row ids.

    If it has shards, the rows of all of them are read. Of more than `max_rows` rows, random ones
    are read.

    Raises:
        ValueError: the directory is not an output of this project, or cannot be read.
    """
    part_files = sorted(path.glob("part-*.parquet")) or sorted(
        path.glob("shard-*-of-*/part-*.parquet")
    )
    if not part_files:
        raise ValueError(f"{path} holds no part-*.parquet; name the output directory of a job")
    try:
        data = ds.dataset([str(part) for part in part_files], format="parquet")
        missing = [name for name in RESULTS if name not in data.schema.names]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
        ids = _chosen_ids(data, max_rows, seed, status, only)
        rows = data.to_table(filter=None if ids is None else pc.field("row_id").isin(ids))
        num_rows = data.count_rows()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    keys = [_natural(row_id) for row_id in rows["row_id"].to_pylist()]
    order = sorted(range(rows.num_rows), key=keys.__getitem__)
    return Output(
        path=path.absolute(),
        run_folder=part_files[0].parent,
        **_recipe(data.schema, path),
        **_run(part_files[0].parent),
        rows=rows.take(pa.array(order, pa.int64())),
        num_rows=num_rows,
    )


def as_json(value: Any, max_len: int = 2000) -> str:
    """Format a value as text, cut if it is long; bytes are replaced by their number."""
    if isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, default=_brief, ensure_ascii=False)
    return text if len(text) <= max_len else f"{text[:max_len]} ... ({len(text)} characters)"


def _brief(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _chosen_ids(
    data: ds.Dataset, max_rows: int | None, seed: int, status: str | None, only: list[str] | None
) -> pa.Array | None:
    """Return the ids to read, or None for all; read only the columns that the choice needs."""
    if only is not None:
        return pa.array(only, pa.string())
    wanted = None if status is None else pc.field("status") == status
    if wanted is None and (max_rows is None or data.count_rows() <= max_rows):
        return None
    ids = data.to_table(columns=["row_id"], filter=wanted)["row_id"].combine_chunks()
    if max_rows is None or len(ids) <= max_rows:
        return ids
    ids = ids.sort()  # the choice depends on the ids, not on the part files
    drawn = sorted(random.Random(seed).sample(range(len(ids)), max_rows))
    return ids.take(pa.array(drawn, pa.int64()))


def _natural(row_id: str) -> list[tuple[int, int, str]]:
    """Return a sort key that compares numbers within ids as numbers."""
    parts = re.split(r"([0-9]+)", row_id)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _recipe(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """Return the recipe that the part files contain."""
    metadata = schema.metadata or {}
    try:
        return {
            "recipe": json.loads(metadata[b"moonsweep.recipe"]),
            "recipe_sha256": metadata[b"moonsweep.recipe_sha256"].decode(),
        }
    except (KeyError, ValueError) as error:
        raise ValueError(f"the parts in {path} contain no recipe; no job wrote them") from error


def _run(path: Path) -> dict[str, Any]:
    """Return the options of the last run; for a run of a sweep, the options of the sweep."""
    if (path / _OPTIONS).exists() or not (path.parent / CLIPS).exists():
        return {"run": _options(path / _OPTIONS), "media_folder": None}
    from pipeline.input.listing import list_files

    run = _options(path.parent / _OPTIONS)
    try:
        folder = list_files(str(run.get("input"))).folder
    except ValueError:
        folder = None  # the page then reports the missing media at each row
    return {"run": {**run, "input": str(path.parent / CLIPS)}, "media_folder": folder}


def _options(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        run = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # the page then reports at each row that the input is unknown
    return run if isinstance(run, dict) else {}
