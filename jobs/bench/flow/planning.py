"""Measure what a run of many rows does before its first row can go to an engine.

That is to list the input, to read what the output holds, and to plan which rows are to do; Ray and
the engines start afterwards. Each case has a process of its own, so its peak of memory is its own.
Paths are written in place of media, since nobody opens them.

    layouts    one file with row groups of 131,072 rows; files of 1,000 rows
    names      ids of a column, 17 to 19 digits in no order; `<file>#<row>`
    outputs    new; half of the rows done, every second one
"""

import multiprocessing
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.cli.checkpoint import DEMO
from model.malloc import own_peak_bytes
from pipeline.config import PipelineConfig, recipe_of
from pipeline.input.id_blocks import ids_of_rows
from pipeline.input.plan import plan
from pipeline.output import ledger
from pipeline.output.store import LocalStore
from pipeline.preflight import open_input
from pipeline.schema import InputColumns, Status

T = TypeVar("T")
_LAYOUTS = {"one_file": 0, "files_of_1000": 1000}  # rows of a file; 0: all
_ROWS_PER_PART = 10_000
_ROW_GROUP_ROWS = 1 << 17
_ODD = 0x5851F42D4C957F2D  # times a number, modulo 2**60: another number, in no order
_COLUMNS = {"ids": InputColumns(id="key"), "numbered": InputColumns()}


def measure_planning(folder: Path, num_rows: int) -> dict[str, object]:
    """Measure seconds, seconds of a processor and the peak of memory, by layout, names, output."""
    found: dict[str, object] = {"rows": num_rows}
    for layout, rows_per_file in _LAYOUTS.items():
        source = folder / layout
        _write_input(source, num_rows, rows_per_file or num_rows)
        for name, columns in _COLUMNS.items():
            config = PipelineConfig(
                input=str(source),
                output=str(folder / "out"),
                checkpoint=DEMO,
                carry=(),
                columns=columns,
                device="cpu",
            )
            for output in ("new", "half"):
                if output == "half":
                    _in_own_process(_answer_half, config)
                found[f"{layout}_{name}_{output}"] = _in_own_process(_plan, config)
            shutil.rmtree(config.output)
        shutil.rmtree(source)
    return found


def _in_own_process(work: Callable[[PipelineConfig], T], config: PipelineConfig) -> T:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, config).result()


def _plan(config: PipelineConfig) -> Mapping[str, float]:
    """Do what a run does between its start and that of Ray, but for the checkpoint."""
    before_bytes, before_cpu_s, started_s = own_peak_bytes(), time.process_time(), time.monotonic()
    source = open_input(config)
    listed_s = time.monotonic()
    store = LocalStore(Path(config.output))
    parts = ledger.committed_parts(store)
    schema = pq.read_schema(store.directory / parts[0]) if parts else source.row_schema.output
    index = ledger.read_index(store, parts, schema)
    read_s = time.monotonic()
    rows = plan(source, index)
    ended_s = time.monotonic()
    return {
        "seconds": round(ended_s - started_s, 2),
        "list_s": round(listed_s - started_s, 2),
        "ledger_s": round(read_s - listed_s, 2),
        "plan_s": round(ended_s - read_s, 2),
        "cpu_s": round(time.process_time() - before_cpu_s, 2),
        "peak_mb": round((own_peak_bytes() - before_bytes) / 1e6),
        "todo": rows.num_todo,
        "splits_mb": round(len(pickle.dumps(rows.splits)) / 1e6, 1),  # as they go to the readers
    }


def _write_input(folder: Path, num_rows: int, rows_per_file: int) -> None:
    """Write Parquet files of paths and ids."""
    folder.mkdir()
    for number, first in enumerate(range(0, num_rows, rows_per_file)):
        rows = range(first, min(num_rows, first + rows_per_file))
        with pq.ParquetWriter(folder / f"clips-{number:06}.parquet", _table(rows[:1]).schema) as to:
            for start in range(0, len(rows), _ROW_GROUP_ROWS):
                to.write_table(_table(rows[start : start + _ROW_GROUP_ROWS]))


def _table(rows: range) -> pa.Table:
    numbers = np.arange(rows.start, rows.stop, dtype=np.uint64)
    ids = (numbers * np.uint64(_ODD)) % np.uint64(1 << 60)
    videos = pa.array(["clip.mp4"]).take(pa.array(np.zeros(len(rows), np.int64)))
    return pa.table({"video": videos, "key": pa.array(ids).cast(pa.string())})


def _answer_half(config: PipelineConfig) -> None:
    """Write the output that a run would have left which has answered every second row."""
    source = open_input(config)
    recipe = recipe_of(config, source.row_schema)
    schema = source.row_schema.output.with_metadata(recipe.parquet_metadata)
    store = LocalStore(Path(config.output))
    store.prepare()
    number = 0
    for ids in ids_of_rows(source):
        half = ids.take(pa.array(np.arange(0, len(ids), 2)))
        for start in range(0, len(half), _ROWS_PER_PART):
            chunk = half.slice(start, _ROWS_PER_PART)
            known = {"row_id": chunk, "status": pa.array([Status.OK.value] * len(chunk))}
            columns = [known.get(each.name, pa.nulls(len(chunk), each.type)) for each in schema]
            _, path = store.path_of(f"part-{number:06}-bench.parquet")
            pq.write_table(pa.Table.from_arrays(columns, schema=schema), path)
            number += 1
