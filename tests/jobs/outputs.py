"""Output directories as jobs write them, made here without a model."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.cli.checkpoint import DEMO
from model.inputs.processor import Processor
from parallel.ranks.requests import Request
from pipeline.config import PipelineConfig, recipe_of
from pipeline.fetch.media_access import MediaAccess
from pipeline.input.plan import plan
from pipeline.input.reader import read_split
from pipeline.input.source import open_source
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError
from pipeline.output.ledger import OutputIndex
from pipeline.preflight import open_input
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.prepare import Prepare
from pipeline.schema import InputColumns
from pipeline.stages.generate import Generate
from tests.clips import make_video
from tests.pipeline.decoding import decode_video
from tests.pipeline.stages.test_generate import Groups
from tests.pipeline.stages.test_generate import caption as completion


def write_input(folder: Path, num_rows: int = 4) -> Path:
    """Clips by path, the last one broken; a prompt of its own for the second."""
    videos = []
    for number in range(num_rows):
        video = make_video(numbers=range(number, number + 20))
        (folder / f"{number}.mp4").write_bytes(video[:400] if number == num_rows - 1 else video)
        videos.append(f"{number}.mp4")
    prompts = [None, "What <b>moves</b>?", *[None] * (num_rows - 2)]
    table = pa.table(
        {"video": videos, "question": pa.array(prompts, pa.string()), "n": range(num_rows)}
    )
    pq.write_table(table, folder / "clips.parquet")
    return folder / "clips.parquet"


def write_output(
    output: Path,
    source_path: Path,
    captions: Sequence[str],
    *,
    num_frames: int = 4,
    id_column: str | None = None,
) -> Path:
    """What a job would have written for the rows of `write_input` with these captions."""
    config = PipelineConfig(
        input=str(source_path),
        output=str(output),
        checkpoint=DEMO,
        columns=InputColumns(prompt="question", id=id_column),
        instructions=Instructions(frames=FrameSampling(num_frames=num_frames)),
    )
    source = open_source(str(source_path), config.columns)
    recipe = recipe_of(config, source.row_schema)
    table = pq.read_table(source_path)
    rows = []
    for number, (row, caption) in enumerate(zip(table.to_pylist(), captions, strict=True)):
        row_id = f"clips.parquet#{number}" if id_column is None else str(row[id_column])
        rows.append({**row, "row_id": row_id, **_result(row, caption, config)})
    schema = source.row_schema.output.with_metadata(recipe.parquet_metadata)
    output.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema), output / "part-0-x.parquet")
    (output / "_run.yaml").write_text(yaml.safe_dump({"input": str(source_path)}))
    return output


def _result(row, caption, config):
    media = (Path(config.input).parent / row["video"]).read_bytes()
    try:
        frames = decode_video(media, config.instructions.frames)
    except MediaError as error:
        return {"status": "error", "error_code": error.code.value, "error": error.message}
    return {
        "caption": caption,
        "status": "ok",
        "finish_reason": "stop",
        "num_prompt_tokens": 100,
        "num_generated_tokens": len(caption.split()),
        "frame_times_s": np.asarray(frames.timestamps_s),
        "mean_logprob": -0.25,
        "min_logprob": float("-inf"),
    }


def write_answered(config: PipelineConfig, say: Callable[[Request], str]) -> Path:
    """What a run would have written, with `say` in place of the model."""
    source = open_input(config)
    media = MediaAccess(base=config.media_folder or source.folder)
    processor = Processor.from_checkpoint(config.checkpoint)
    asked = config.instructions
    prepare = Prepare(processor, source.row_schema, asked, media.open)
    groups = Groups(lambda request, _: replace(completion(request), text=say(request)))
    generate = Generate(groups, config.sampling, asked.named_prompts, asked.windows)

    async def answered(rows: pa.Table) -> pa.Table:
        (table,) = [each async for each in generate(rows)]
        return table

    prepared = [
        prepare(rows)
        for piece in plan(source, OutputIndex.empty()).splits
        for rows in read_split(source.filesystem, source.row_schema, piece, max_rows=4)
    ]
    with ThreadPoolExecutor(1) as pool:  # a test in a browser has a loop in its own thread
        tables = list(pool.map(lambda rows: asyncio.run(answered(rows)), prepared))
    prepare.close()
    recipe = recipe_of(config, source.row_schema)
    table = pa.concat_tables(tables).select(source.row_schema.output.names)
    output = Path(config.output)
    output.mkdir(parents=True)
    schema = source.row_schema.output.with_metadata(recipe.parquet_metadata)
    pq.write_table(table.cast(schema), output / "part-0-x.parquet")
    (output / "_run.yaml").write_text(yaml.safe_dump({"input": config.input}))
    return output
