"""The configuration of a small run, and an output as an earlier run would have left it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from model.engine.config import EngineConfig
from model.engine.sequence import SamplingParams
from pipeline.config import PipelineConfig, recipe_of
from pipeline.media.frame_sampling import FrameSampling
from pipeline.output import ledger
from pipeline.output.recipe import claim_output
from pipeline.output.shards import claim_shard, shard_store
from pipeline.output.writer import PartWriter
from pipeline.preflight import open_input
from pipeline.prompts.instructions import Instructions
from tests.clips import make_video


def small_config(tmp_path: Path, checkpoint: Path) -> PipelineConfig:
    """Six clips in two row groups; each row names a file of its own."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.mp4").write_bytes(make_video(numbers=range(6)))
    table = pa.table({"video": [f"{number}.mp4" for number in range(6)], "n": range(6)})
    pq.write_table(table, folder / "clips.parquet", row_group_size=3)
    return PipelineConfig(
        input=str(folder),
        output=str(tmp_path / "out"),
        checkpoint=checkpoint,
        instructions=Instructions(frames=FrameSampling(num_frames=2), max_frame_tokens=4),
        sampling=SamplingParams(max_tokens=4),
        engine=EngineConfig(cache_gib=0.01),
    )


def store_of(config):
    return shard_store(config.output, config.shard)


def answer_without_ray(config, numbers, code=None, row_id="clips.parquet#{}"):
    """Commit made-up captions for some rows, as an earlier run would have."""
    source = open_input(config)
    recipe = recipe_of(config, source.row_schema)
    schema = source.row_schema.output.with_metadata(recipe.parquet_metadata)
    store = store_of(config)
    store.prepare()
    if config.shard is not None:
        identity = source.identity
        claim_shard(config.output, config.shard, identity, recipe, new_recipe=config.new_recipe)
    claim_output(store, recipe, new_recipe=config.new_recipe)
    index = ledger.read_index(store, ledger.committed_parts(store), schema)
    writer = PartWriter(store, "r0", schema, index, rows_per_part=100, max_part_age_s=100)
    known = {"status": "error" if code else "ok", "error_code": code}
    rows = [{"row_id": row_id.format(n), "video": f"{n}.mp4", "n": n, **known} for n in numbers]
    writer.add(pa.Table.from_pylist(rows, schema=schema))
    writer.commit()
