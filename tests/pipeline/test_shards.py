"""Several jobs answer one input, each a shard; together they have each row once."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs import caption_videos
from pipeline import shard_check
from pipeline.dry_run import dry_run
from pipeline.input.listing import list_files
from pipeline.output.ledger import committed_parts
from pipeline.output.shards import Shard, begun_shards
from pipeline.run import RunError
from pipeline.schema import InputColumns
from pipeline.shard_check import check_shards
from tests.conftest import ROOT
from tests.pipeline.runs import answer_without_ray, small_config, store_of
from tests.pipeline.stages.test_inline import PROGRAM, dying_engine
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture
def config(tmp_path, checkpoint):
    """Six clips in two row groups of one file."""
    return small_config(tmp_path, checkpoint)


def shard_of(config, number, of=3, **changes):
    return replace(config, shard=Shard(number, of), **changes)


def answer(config, number, of=3, rows=None, **changes):
    own = shard_of(config, number, of, **changes)
    answer_without_ray(own, own.shard.rows(6) if rows is None else rows)


def test_shards_are_one_dataset_and_one_that_died_continues_alone(config, carry_out):
    broken = shard_of(config, 2, rows_per_part=1, rows_per_batch=1, of=2)
    broken = replace(broken, engine=replace(broken.engine, max_batch_size=1))
    carry_out(shard_of(config, 1, of=2))
    with pytest.raises(RunError, match="fell off the bus"):
        carry_out(broken, engine_factory=dying_engine)
    kept = {row["n"]: row for row in pq.read_table(config.output).to_pylist()}
    check = check_shards(config, if_finished=True)
    assert (check.is_waiting, check.unfinished, check.wrong) == (True, (Shard(2, 2),), None)

    report = carry_out(broken)

    assert (report.rows_in, report.rows_done_before) == (3, len(kept) - 3)
    names = [f"clips.parquet#{n}" for n in range(6)]
    frame = pd.read_parquet(config.output).sort_values("n")
    assert list(frame["row_id"]) == names
    part = next(Path(config.output).rglob("part-*.parquet"))
    assert list(frame.columns) == pq.read_schema(part).names
    table = ds.dataset(config.output).to_table().sort_by("n")
    assert table["row_id"].to_pylist() == names
    assert all(row == kept.get(row["n"], row) for row in table.to_pylist())
    assert check_shards(config).is_whole
    assert carry_out(shard_of(config, 1, of=2)).rows_written == 0


@pytest.mark.slow
def test_a_shard_that_was_killed_continues_beside_the_others(
    config, carry_out, tmp_path, checkpoint
):
    program = (
        PROGRAM.replace(">= 3", ">= 1")
        .replace("rows_per_part=1,", "rows_per_part=1, shard=Shard(1, 2),")
        .replace("from pipeline.run", "from pipeline.output.shards import Shard\nfrom pipeline.run")
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(checkpoint)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"stuck\n"
        carry_out(shard_of(config, 2, of=2))
        while not list(Path(config.output).glob("shard-1-of-2/part-*")):
            time.sleep(0.01)
        job.kill()
        assert job.wait(30) == -9
    kept = pq.read_table(config.output).num_rows
    assert kept < 6
    assert check_shards(config).unfinished == (Shard(1, 2),)

    carry_out(shard_of(config, 1, of=2))

    assert check_shards(config).is_whole
    rows = pq.read_table(config.output).sort_by("n")
    assert rows["n"].to_pylist() == list(range(6))
    assert set(rows["attempts"].to_pylist()) == {1, 2}


def test_a_shard_without_rows_is_finished_at_once(config, carry_out):
    assert carry_out(shard_of(config, 1, 7)).rows_in == 0


@pytest.mark.parametrize("changes", [{"shard": Shard(1, 4)}, {"shard": None}], ids=["4", "none"])
def test_another_cut_of_the_same_output_is_refused(config, carry_out, changes):
    answer(config, 2)
    before = sorted(Path(config.output).rglob("*"))

    for act in (carry_out, lambda other: dry_run(other, num_gpus=0, where="here")):
        with pytest.raises(ValueError, match=r"holds shard-2-of-3.*give --shard I/3, or use"):
            act(replace(config, **changes))

    assert sorted(Path(config.output).rglob("*")) == before


def test_a_shard_of_an_output_without_shards_is_refused(config, carry_out):
    answer_without_ray(config, [0])

    with pytest.raises(ValueError, match="begun by a run without --shard; continue it so"):
        carry_out(shard_of(config, 1))


@pytest.mark.parametrize("number", [1, 2], ids=["the other shard", "the same shard"])
def test_an_input_that_has_changed_since_any_shard_began_is_refused(config, carry_out, number):
    answer(config, 1)
    pq.write_table(pa.table({"video": ["0.mp4"], "n": [6]}), Path(config.input) / "more.parquet")

    with pytest.raises(ValueError, match=r"input of 6 rows in 1 files.*7 rows in 2 files now"):
        carry_out(shard_of(config, number))

    assert begun_shards(config.output) == [Shard(1, 3)]
    check = check_shards(config)
    assert "was begun with an input of 6 rows in 1 files" in check.problems[0]
    assert not check.is_whole


def test_another_recipe_than_that_of_another_shard_is_refused(config, carry_out):
    answer(config, 1)
    other = replace(config, sampling=replace(config.sampling, max_tokens=5))

    with pytest.raises(ValueError, match=r"shard-1-of-3 was begun.*max_tokens: 4 -> 5.*All shards"):
        carry_out(shard_of(other, 2))
    with pytest.raises(ValueError, match="All shards need the same"):
        dry_run(shard_of(other, 2), num_gpus=0, where="here")

    answer(other, 2, new_recipe=True)
    with pytest.raises(ValueError, match=r"shard-2-of-3 was begun.*run every shard"):
        carry_out(shard_of(config, 3))
    assert "another recipe than shard-1-of-3" in check_shards(config).problems[0]
    answer(other, 1, new_recipe=True)  # sets the rows of the old recipe aside
    answer(other, 3)
    assert check_shards(other).is_whole
    assert (Path(config.output) / "shard-1-of-3" / "_shard.json").exists()


def test_parts_of_shards_are_no_input(config):
    answer(config, 1, output=f"{config.input}/out")

    found = list_files(config.input, output=f"{config.input}/out").files

    assert [name for name, _ in found] == ["clips.parquet"]


@pytest.fixture(params=[1 << 27, 2], ids=["one pass", "three passes"])
def _passes(request, monkeypatch):
    monkeypatch.setattr(shard_check, "_ROWS_AT_ONCE", request.param)


@pytest.mark.usefixtures("_passes")
def test_missing_doubled_and_unknown_rows_are_told_by_name(config):
    for number, rows in ((1, [0, 1]), (2, [2]), (3, [4, 5])):
        answer(config, number, rows=rows)
    answer_without_ray(shard_of(config, 1), [0], row_id="strange#{}")
    store = store_of(shard_of(config, 3))
    part = Path(store.uri) / committed_parts(store)[0]
    pq.write_table(pq.read_table(part), part.with_name("part-000009-copy.parquet"))

    check = check_shards(config)

    assert check.wrong == {"missing": 1, "twice": 2, "unknown": 1}
    assert check.unfinished == (Shard(2, 3),)
    assert check.named["missing"] == ("'clips.parquet#3'",)
    assert len(check.named["twice"]) == 4
    assert check.named["unknown"] == ("'strange#0' in shard-1-of-3/part-000001-r0.parquet",)
    text = str(check)
    assert "2 of 3 shards are finished" in text
    assert "shard     2/3 has 1 of 2 rows" in text
    assert "MISSING   1 rows, such as 'clips.parquet#3'" in text
    assert re.search(r"TWICE     2 rows.*'clips.parquet#4' in shard-3-of-3/part-000009-copy", text)
    assert not check.is_whole
    assert not check.is_waiting


def test_an_id_that_two_shards_have_is_found_at_the_end(config):
    folder = Path(config.input)
    names = pa.array(["a", "b", "c", "d", "a", "e"])
    table = pq.read_table(folder / "clips.parquet").append_column("key", names)
    pq.write_table(table, folder / "clips.parquet")
    config = replace(config, columns=InputColumns(id="key"))
    for number in (1, 2, 3):
        own = shard_of(config, number)
        for n in own.shard.rows(6):
            answer_without_ray(own, [n], row_id=names[n].as_py())

    check = check_shards(config)

    assert "the id 'a' appears twice in column 'key'" in check.problems[0]
    assert not check.is_whole
    renamed = check_shards(replace(config, make_ids_unique=True))
    assert "other names of rows: make_ids_unique: false -> true" in renamed.problems[0]


def test_renamed_ids_are_compared_as_the_output_has_them(config):
    folder = Path(config.input)
    table = pq.read_table(folder / "clips.parquet")
    table = table.append_column("key", pa.array(["a", "b", "c", "d", "a", None]))
    pq.write_table(table, folder / "clips.parquet")
    config = replace(config, columns=InputColumns(id="key"), make_ids_unique=True)
    names = ["a", "b", "c", "d", "a@clips.parquet#4", "clips.parquet#5"]
    for number in (1, 2, 3):
        own = shard_of(config, number)
        for n in own.shard.rows(6):
            if n != 4:
                answer_without_ray(own, [n], row_id=names[n])
    assert check_shards(config).named["missing"] == ("'a@clips.parquet#4'",)

    answer_without_ray(shard_of(config, 3), [4], row_id=names[4])

    assert check_shards(config).is_whole


def test_a_part_that_is_damaged_is_named_with_the_remedy(config):
    answer(config, 1)
    part = next(Path(config.output).rglob("part-*"))
    part.write_bytes(part.read_bytes()[:-20])

    with pytest.raises(ValueError, match=f"{part} cannot be read .*delete it to caption its rows"):
        check_shards(config)


@pytest.fixture
def command(config):
    """The arguments of a command, for what the configuration says."""
    config = replace(config, instructions=replace(config.instructions, max_frame_tokens=4))
    return [
        *("--input", config.input, "--output", config.output, "--model", str(config.checkpoint)),
        *("--frames", "2", "--frame-tokens", "4", "--max-tokens", "4", "--inline"),
        *("--cache-gib", "0.01"),
    ]


def test_the_last_shard_to_finish_checks_the_whole(config, command, capsys):
    def run(*more):
        code = caption_videos.main([*command, *more])
        return code, capsys.readouterr()

    assert run("--check-shards")[0] == 2
    code, told = run("--shard", "1/2", "--check-shards")
    assert code == 0, told.err
    assert "1 of 2 shards are finished" in told.out
    assert "shard     2/2 has 0 of 3 rows" in told.out
    code, told = run("--check-shards")
    assert code == 1
    assert "MISSING   3 rows" in told.out
    code, told = run("--shard", "2/2", "--check-shards")
    assert (code, "every row of the input is in the output once" in told.out) == (0, True)
    report = json.loads((Path(config.output) / "shard-2-of-2" / "_report.json").read_text())
    assert report["shard"] == "2/2"
    yaml = f"{config.output}/shard-2-of-2/_run.yaml"
    assert caption_videos.main(["--config", yaml]) == 0
    assert "'1/2'" not in Path(yaml).read_text()
    assert "shard: 2/2" in Path(yaml).read_text()


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "1/", "-1/4", "1/4/2"])
def test_a_shard_that_is_none_is_refused_with_an_example(command, capsys, text):
    with pytest.raises(SystemExit) as ended:
        caption_videos.main([*command, f"--shard={text}"])

    assert ended.value.code == 2
    assert "is not I/N, with N shards and I from 1 to N, such as 1/4" in capsys.readouterr().err


def test_a_dry_run_tells_of_its_shard(config):
    text = str(dry_run(shard_of(config, 2), num_gpus=0, where="here"))

    assert "input     2 rows in 1 file of" in text
    assert "as shard 2/3" in text
    assert "shard-2-of-3" in text
