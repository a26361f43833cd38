"""Prompts with schemas, from the file to the columns and their readers; an engine, and no Ray."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import review
from jobs.caption_videos import make_parser
from jobs.cli.config_file import parse
from jobs.cli.pipeline_config import pipeline_config
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.inputs.processor import Processor
from pipeline.config import recipe_of
from pipeline.dry_run import dry_run
from pipeline.fetch.media_access import MediaAccess
from pipeline.input.schema_merge import conform
from pipeline.output import ledger
from pipeline.output.recipe import claim_output
from pipeline.output.store import LocalStore
from pipeline.output.writer import PartWriter
from pipeline.preflight import open_checkpoint, open_input
from pipeline.prompts.prepare import Prepare
from pipeline.schema import ErrorCode
from pipeline.stages.generate import Generate
from tests.clips import make_video
from tests.pipeline.stages.test_generate import Groups
from tests.tiny import tiny_checkpoint

PROMPTS = """\
tags:
  text: What is in {title}?
  max-tokens: 99
  schema: &tags
    type: object
    properties:
      moves: {type: boolean}
      colours: {type: array, items: {enum: [red, blue]}, minItems: 1, maxItems: 2}
    required: [moves, colours]
text: {text: The same., max-tokens: 99, schema: *tags, as: json}
kind: {text: Which., schema: {enum: [clip]}}
cut: {text: Much., max-tokens: 3, schema: {type: array, items: {type: boolean}, minItems: 9}}
large: {text: How many., schema: {type: integer}}
caption: {text: What., schema: {enum: [clip]}}
"""
LARGE = "9" * 30  # which the grammar allows
TAGS = pa.struct([("moves", pa.bool_()), ("colours", pa.list_(pa.string()))])


@pytest.fixture
def config(tmp_path):
    tiny_checkpoint(tmp_path / "model")
    (tmp_path / "a.mp4").write_bytes(make_video(numbers=range(6)))
    clips = pa.table({"video": ["a.mp4", "gone.mp4"], "title": ["A", "B"]})
    pq.write_table(clips, tmp_path / "clips.parquet")
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    return configured(tmp_path)


def configured(folder, *more):
    paths = {"input": "clips.parquet", "output": "out", "model": "model", "prompts": "prompts.yaml"}
    arguments = [f"--{name}={folder / path}" for name, path in paths.items()]
    return pipeline_config(
        parse(make_parser, [*arguments, "--frames=2", "--frame-tokens=4", *more])
    )


def answered(config):
    """All rows, as the stages of a run leave them."""
    processor = Processor.from_checkpoint(config.checkpoint)
    engine = Engine.from_checkpoint(config.checkpoint, EngineConfig(cache_gib=0.01))

    def answer(request, _):
        engine.add(request.request_id, request.prompt, request.params)
        done = {}
        while engine.has_work:
            done |= dict(engine.step())
        answer = done[request.request_id]
        is_large = request.params.schema == '{"type": "integer"}'
        return replace(answer, text=LARGE, finish_reason="stop") if is_large else answer

    row_schema = open_input(config).row_schema
    rows = conform(pq.read_table(config.input), row_schema.read)
    rows = rows.add_column(0, "row_id", pa.array([f"clips.parquet#{n}" for n in range(2)]))
    access = MediaAccess(base=str(Path(config.input).parent))
    prepared = Prepare(processor, row_schema, config.instructions, access.open)(rows)
    generate = Generate(Groups(answer), config.sampling, config.instructions.named_prompts)

    async def run():
        return [table async for table in generate(prepared)]

    (table,) = asyncio.run(run())
    return table


def commit(config, rows, retry=()):
    """Put rows into the output as a run does."""
    recipe = recipe_of(config, open_input(config).row_schema)
    schema = open_input(config).row_schema.output.with_metadata(recipe.parquet_metadata)
    store = LocalStore(Path(config.output))
    store.prepare()
    claim_output(store, recipe)
    index = ledger.read_index(store, ledger.committed_parts(store), schema, retry=retry)
    writer = PartWriter(store, "r0", schema, index, rows_per_part=100, max_part_age_s=100)
    writer.add(rows.select(schema.names))
    writer.commit()
    return store


def test_answers_have_their_types_from_the_prompts_to_the_readers_of_the_output(config, tmp_path):
    open_checkpoint(config)
    rows = answered(config)
    store = commit(config, rows)
    commit(config, rows.slice(1), retry=[ErrorCode.MEDIA_MISSING])  # its part is written again

    table = pq.read_table(config.output).sort_by("row_id")
    here, gone = table.to_pylist()

    assert table.schema.field("tags").type == TAGS
    assert table.schema.field("kind").type == pa.string()
    assert table.schema.field("cut").type == pa.list_(pa.bool_())
    assert pa.types.is_large_string(table.schema.field("text").type)
    assert here["tags"]["moves"] in (True, False)
    assert {*here["tags"]["colours"]} <= {"red", "blue"}
    assert json.loads(here["text"]).keys() == {"moves", "colours"}
    assert (here["kind"], here["caption"]) == ("clip", '"clip"')
    told = {answer["question"]: answer for answer in here["answers"]}
    assert {told[name]["text"] for name in ("tags", "text", "kind", "caption")} == {None}
    assert here["cut"] is here["large"] is None
    assert told["cut"]["status"] == "truncated"
    assert told["cut"]["finish_reason"] == "length"
    assert told["cut"]["text"].startswith("[")
    assert (told["large"]["status"], told["large"]["error_code"]) == ("error", "schema_failed")
    assert "which is not of type int64" in told["large"]["error"]
    assert told["large"]["text"] == LARGE
    assert (here["status"], here["error"]) == ("error", f"large: {told['large']['error']}")
    assert [gone[name] for name in ("tags", "text", "kind", "cut", "caption")] == [None] * 5
    assert (gone["error_code"], gone["attempts"]) == ("media_missing", 2)
    counts = ledger.count_results(store, ledger.committed_parts(store))
    assert counts == ({"error": 2}, {"schema_failed": 1, "media_missing": 1})
    assert table["tags"].to_pandas()[0]["moves"] == here["tags"]["moves"]
    assert review.main([config.output, "--page", str(tmp_path / "page.html")]) == 0
    assert json.dumps(json.dumps(here["tags"])) in (tmp_path / "page.html").read_text()


def test_the_type_of_a_column_is_part_of_the_recipe_and_as_json_is_that_of_text(config, tmp_path):
    commit(config, answered(config))
    (tmp_path / "prompts.yaml").write_text(
        PROMPTS.replace("  schema: &", "  as: json\n  schema: &")
    )
    text = configured(tmp_path)

    changes = dry_run(text, num_gpus=0, where="here").changes

    columns, schema = sorted(changes)
    assert columns.startswith("output_columns: - tags: struct<moves: bool, colours: list<")
    assert columns.endswith("+ tags: large_string")
    assert schema.startswith("questions.tags.sampling.schema: ")  # which closed its object
    fields = recipe_of(text, open_input(text).row_schema).fields
    assert fields["questions"][0].keys() == {"name", "text", "sampling", "look", "over"}
    assert (
        fields["questions"][0]["sampling"]["schema"] == fields["questions"][1]["sampling"]["schema"]
    )
    with pytest.raises(ValueError, match=r"begun under another recipe: .*tags: large_string"):
        claim_output(LocalStore(Path(config.output)), recipe_of(text, open_input(text).row_schema))


def test_a_schema_of_the_command_types_the_prompts_without_one(config, tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "integer"}')
    (tmp_path / "prompts.yaml").write_text("count: How many?\ncaption: How many?\n")
    config = configured(tmp_path, f"--schema={tmp_path}/schema.json")

    fields = open_input(config).row_schema.output
    assert fields.field("count").type == pa.int64()
    assert fields.field("caption").type == pa.large_string()
