"""Outputs that an earlier version began are continued by this one.

`tests/data/begun_before` holds what the version of 2026-11-29 wrote of three videos with several
prompts, of the same videos in windows, of images and of documents. Their recipes, ids and columns
must mean the same today.
"""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.ledger import hash_ids

BEGUN = Path(__file__).resolve().parents[1] / "data" / "begun_before"
CASES = [
    pytest.param("videos", "caption_videos", id="several prompts"),
    pytest.param("windows", "caption_videos", id="windows, merged"),
    pytest.param("images", "describe_images", id="images, samples"),
    pytest.param("documents", "parse_documents", id="documents"),
]


@pytest.fixture
def begun(request, tmp_path):
    """A copy of one of them, with its options as they were."""
    folder = tmp_path / "begun"
    shutil.copytree(BEGUN / request.param, folder)
    options = folder / "output" / "_run.yaml"
    options.write_text(options.read_text().replace("FOLDER", str(folder)))
    return folder


def add_a_file(folder: Path) -> str:
    """Give the input a second file with one row; the id of that row."""
    old = pq.read_table(folder / "input" / "a.parquet")
    row = old.slice(0, 1)
    if "id" not in old.column_names:
        pq.write_table(row, folder / "input" / "b.parquet")
        return "b.parquet#0"
    name = pa.array(["new" if pa.types.is_string(old.schema.field("id").type) else 99])
    new = row.set_column(old.column_names.index("id"), "id", name)
    pq.write_table(new, folder / "input" / "b.parquet")
    return str(name[0].as_py())


@pytest.mark.parametrize(("begun", "job"), CASES, indirect=["begun"])
def test_its_rows_stay_and_new_ones_are_added(begun, job, capfd):
    new_id = add_a_file(begun)
    before = {row["row_id"]: row for row in pq.read_table(begun / "output").to_pylist()}
    was_killed_with = {str(int(hash_ids(pa.array([new_id]))[0])): 2}
    (begun / "output" / "_starts.json").write_text(json.dumps(was_killed_with))

    code = import_module(f"jobs.{job}").main(
        ["--config", str(begun / "output" / "_run.yaml"), "--inline"]
    )

    printed = capfd.readouterr()
    assert code == 0, printed.err
    assert f"{len(before)} done before + 1 written" in printed.out
    is_named_by_place = "#" in new_id
    assert ("the output does not know what its input was" in printed.err) == is_named_by_place
    assert (begun / "output" / "_files.json").exists() == is_named_by_place
    after = {row["row_id"]: row for row in pq.read_table(begun / "output").to_pylist()}
    assert {row_id: after[row_id] for row_id in before} == before
    assert after.keys() - before.keys() == {new_id}
    assert after[new_id]["status"] in ("ok", "truncated")
    assert after[new_id]["attempts"] == 3
    assert not (begun / "output" / "_starts.json").exists()


@pytest.mark.parametrize(("begun", "job"), CASES, indirect=["begun"])
def test_another_recipe_is_refused_by_the_name_it_had(begun, job, capfd):
    code = import_module(f"jobs.{job}").main(
        ["--config", str(begun / "output" / "_run.yaml"), "--inline", "--max-tokens", "9"]
    )

    assert code == 2
    told = capfd.readouterr().err
    assert "was begun under another recipe: " in told
    assert " sampling.max_tokens: 8 -> 9" in told
    assert told.count(" -> ") == told.count("tokens: 8 -> 9"), told  # and nothing else
    has_prompts = (begun / "prompts.yaml").exists()
    assert ("questions.caption.sampling.max_tokens: 8 -> 9" in told) == has_prompts
