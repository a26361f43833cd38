"""A file that comes later takes no row's id."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dry_run import dry_run
from pipeline.input.manifest import FILES, in_known_order, note_files
from pipeline.input.plan import plan
from pipeline.input.reader import read_split
from pipeline.input.source import open_source
from pipeline.output.ledger import OutputIndex
from pipeline.output.recipe import Recipe, claim_output
from pipeline.output.store import LocalStore
from pipeline.run import run
from pipeline.schema import InputColumns
from tests.pipeline.runs import answer_without_ray, small_config
from tests.tiny import tiny_checkpoint

SOME_PARTS = ["part-0.parquet"]


def write(folder, name, *keys):
    folder.mkdir(exist_ok=True)
    video = [f"{name}{row}.mp4" for row in range(len(keys))]
    table = pa.table({"video": video, "key": pa.array(keys, pa.string())})
    pq.write_table(table, folder / f"{name}.parquet")


def opened(folder, *, make_ids_unique=True, **columns):
    columns = InputColumns(**{"id": "key", **columns})
    return open_source(str(folder), columns, make_ids_unique=make_ids_unique)


def begun(folder):
    """The store of an output of what is in the folder now."""
    store = LocalStore(folder.parent / "out")
    store.prepare()
    note_files(opened(folder), store)
    return store


def rows_listed(folder):
    listed = json.loads((folder / "out" / FILES).read_text())["files"]
    return [(file["name"], file["rows"]) for file in listed]


def names_of(source):
    """The media of each row by the row's id."""
    tables = [
        table
        for split in plan(source, OutputIndex.empty()).splits
        for table in read_split(source.filesystem, source.row_schema, split, max_rows=9)
    ]
    return {row["row_id"]: row["video"] for table in tables for row in table.to_pylist()}


def test_names_stay_whatever_files_come_before_or_after(tmp_path):
    folder = tmp_path / "in"
    write(folder, "m", "x", "y", "x", None)
    store = begun(folder)
    names = {"x": "m0.mp4", "y": "m1.mp4", "x@m.parquet#2": "m2.mp4", "m.parquet#3": "m3.mp4"}
    assert names_of(opened(folder)) == names

    for name, first in (("z", "x@z.parquet#0"), ("a", "x@a.parquet#0"), ("f", "x@f.parquet#0")):
        write(folder, name, "x", f"own {name}")
        source = in_known_order(opened(folder), store, SOME_PARTS)
        note_files(source, store)
        names |= {first: f"{name}0.mp4", f"own {name}": f"{name}1.mp4"}

        assert names_of(source) == names

    assert rows_listed(tmp_path) == [
        *(("m.parquet", 4), ("z.parquet", 2), ("a.parquet", 2), ("f.parquet", 2))
    ]


def test_a_repeated_id_is_found_in_files_of_any_order(tmp_path):
    folder = tmp_path / "in"
    write(folder, "b", "x", "a.parquet#0")
    store = begun(folder)
    write(folder, "a", None)

    with pytest.raises(
        ValueError, match=r"'a.parquet#0' .*(has the same 64-bit hash|appears twice)"
    ):
        plan(in_known_order(opened(folder), store, SOME_PARTS), OutputIndex.empty())


def test_files_that_are_gone_or_changed_are_refused_by_name(tmp_path):
    folder = tmp_path / "in"
    for name in "abcde":
        write(folder, name, "x")
    store = begun(folder)
    write(folder, "b", "x", "y")
    (folder / "c.parquet").unlink()

    with pytest.raises(ValueError, match="put the files back as they were, or use another") as one:
        in_known_order(opened(folder), store, SOME_PARTS)
    for name in "de":
        (folder / f"{name}.parquet").unlink()
    with pytest.raises(ValueError, match=r"d.parquet is gone; and 1 more\. ") as all_of_them:
        in_known_order(opened(folder), store, SOME_PARTS)

    changes = "b.parquet had 1 rows and has 2; c.parquet is gone"
    assert f"{changes}. With --make-ids-unique" in str(one.value)
    assert changes in str(all_of_them.value)


def test_there_is_no_list_where_names_do_not_depend_on_it(tmp_path):
    folder = tmp_path / "in"
    write(folder, "b", "x")
    store = begun(folder)
    write(folder, "a", "y")
    source = opened(folder, make_ids_unique=False)

    assert in_known_order(source, store, SOME_PARTS) is source
    store.delete(FILES)
    note_files(source, store)
    assert store.names() == []


def test_a_list_of_a_former_version_is_taken_and_completed(tmp_path):
    folder = tmp_path / "in"
    for name in "ba":
        write(folder, name, "x")
    store = begun(folder)
    store.write(FILES, b'{"b.parquet": 1, "a.parquet": 1}')

    source = in_known_order(opened(folder), store, SOME_PARTS)
    assert names_of(source) == {"x": "b0.mp4", "x@a.parquet#0": "a0.mp4"}
    note_files(source, store)
    write(folder, "a", "y")
    with pytest.raises(ValueError, match=r"a\.parquet has other content. With --make-ids-unique"):
        in_known_order(opened(folder), store, SOME_PARTS, new_rows=True)


def test_an_output_without_rows_takes_any_files(tmp_path):
    folder = tmp_path / "in"
    write(folder, "b", "x")
    store = begun(folder)
    (folder / "b.parquet").unlink()
    write(folder, "a", "x")

    note_files(in_known_order(opened(folder), store, []), store)

    assert rows_listed(tmp_path) == [("a.parquet", 1)]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"a.parquet": null}', '{"files": [{"name": "a"}]}']
)
def test_a_damaged_list_is_refused(tmp_path, content):
    folder = tmp_path / "in"
    write(folder, "a", "x")
    store = begun(folder)
    (tmp_path / "out" / FILES).write_text(content)

    with pytest.raises(ValueError, match=f"{FILES} of .*out is damaged"):
        in_known_order(opened(folder), store, SOME_PARTS)


def test_a_new_recipe_sets_the_list_aside(tmp_path):
    folder = tmp_path / "in"
    write(folder, "a", "x")
    store = begun(folder)
    claim_output(store, Recipe({"prompt": "a"}))
    (tmp_path / "out" / "part-0.parquet").touch()

    claim_output(store, Recipe({"prompt": "b"}), new_recipe=True)

    assert store.names() == ["_recipe.json"]


def test_a_run_continues_with_the_names_of_the_run_before(tmp_path):
    tiny_checkpoint(tmp_path)
    config = replace(
        small_config(tmp_path, tmp_path), columns=InputColumns(id="n"), make_ids_unique=True
    )
    answer_without_ray(config, range(6), row_id="{}")

    def never():
        raise AssertionError("nothing is left to do, so Ray is not needed")

    run(config, connect=never, show_progress=False)
    more = pa.table({"video": ["5.mp4", "0.mp4"], "n": [5, 6]})
    pq.write_table(more, Path(config.input) / "a.parquet")

    counts = dry_run(config, num_gpus=0, where="here").counts
    assert (counts.all, counts.done, counts.new) == (8, 6, 2)
    answer_without_ray(config, [5], row_id="{}@a.parquet#0")
    answer_without_ray(config, [6], row_id="{}")
    report = run(config, connect=never, show_progress=False)
    assert (report.rows_in, report.rows_done_before) == (8, 8)

    (Path(config.input) / "a.parquet").unlink()
    for refused in (
        lambda: run(config, connect=never),
        lambda: dry_run(config, num_gpus=0, where=""),
    ):
        with pytest.raises(ValueError, match=r"a.parquet is gone. With --make-ids-unique"):
            refused()
