"""Rows become visible whole, once, and only through the driver."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ledger import IdSet, committed_ids, committed_parts, open_staging
from pipeline.schema import InputColumns, check_input
from pipeline.sink import Committer, stage

SCHEMA = check_input(pa.schema([("video", pa.string())]), InputColumns()).output.with_metadata(
    {"moonsweep.recipe": "{}"}
)


def results(*ids, code=None):
    rows = [
        {
            "row_id": row_id,
            "video": f"{row_id}.mp4",
            "caption": None if code else f"about {row_id}",
            "status": "error" if code else "ok",
            "error_code": code,
            "error": "it broke" if code else None,
            "num_prompt_tokens": None if code else 10,
            "num_generated_tokens": None if code else 5,
            "frame_times_s": [0.5, 1.5],
        }
        for row_id in ids
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def sink(tmp_path):
    staging = open_staging(tmp_path, "r1")
    clock = Clock()
    committer = Committer(
        tmp_path,
        staging,
        "r1",
        SCHEMA,
        IdSet(),
        rows_per_part=4,
        max_part_age_s=60,
        clock=clock,
    )

    def put(rows):
        for row in stage(rows, staging=str(staging), schema=SCHEMA).to_pylist():
            committer.add(row["path"], row["rows"])

    return committer, put, clock


def ids_in(output):
    return [row_id for part in committed_parts(output) for row_id in ids_of(part)]


def ids_of(part):
    return pq.read_table(part, columns=["row_id"])["row_id"].to_pylist()


def test_staging_says_what_was_written(tmp_path):
    staging = open_staging(tmp_path, "r1")
    rows = pa.concat_tables([results("a", "b"), results("c", code="media_missing")])

    (line,) = stage(rows, staging=str(staging), schema=SCHEMA).to_pylist()

    assert pq.ParquetFile(line.pop("path")).read().equals(rows)
    assert line == {"rows": 3, "errors": 1, "tokens": 10}


def test_columns_that_the_output_does_not_have_are_dropped(tmp_path):
    staging = open_staging(tmp_path, "r1")
    rows = results("a").append_column("prompt_patches", pa.array([b"x"], pa.large_binary()))

    (line,) = stage(rows, staging=str(staging), schema=SCHEMA).to_pylist()

    assert pq.read_schema(line["path"]).names == SCHEMA.names


def test_parts_have_a_bounded_number_of_rows_and_the_recipe(tmp_path, sink):
    _, put, _ = sink
    put(results("a", "b"))
    put(results("c"))
    assert committed_parts(tmp_path) == []  # 3 of 4 rows

    put(results(*"defghi"))

    parts = committed_parts(tmp_path)
    assert [part.name for part in parts] == [f"part-r1-0000{n}.parquet" for n in range(3)]
    assert [ids_of(part) for part in parts] == [list("abcd"), list("efgh"), ["i"]]
    assert pq.read_schema(parts[0]).metadata[b"moonsweep.recipe"] == b"{}"
    assert list((tmp_path / "_staging" / "r1").iterdir()) == []


def test_old_rows_are_committed_though_they_are_few(tmp_path, sink):
    committer, put, clock = sink
    put(results("a"))
    clock.now_s = 59.0
    committer.commit_if_due()
    assert ids_in(tmp_path) == []

    clock.now_s = 60.0
    committer.commit_if_due()

    assert ids_in(tmp_path) == ["a"]


def test_large_rows_are_committed_though_they_are_few(tmp_path, sink, monkeypatch):
    put = sink[1]
    put(results("a"))
    assert ids_in(tmp_path) == []
    (staged,) = (tmp_path / "_staging" / "r1").iterdir()
    monkeypatch.setattr("pipeline.sink._MAX_WAITING_BYTES", staged.stat().st_size + 1)

    put(results("b"))

    assert ids_in(tmp_path) == ["a", "b"]


def test_a_row_staged_twice_is_committed_once(tmp_path, sink):
    committer, put, _ = sink
    put(results("a", "b"))
    put(results("b", "c", "d"))  # one commit, b in it twice
    put(results("a", "d", "e", "f"))  # a later commit

    assert ids_in(tmp_path) == list("abcdef")
    assert committer.num_rows == 6


def test_counts_are_of_committed_rows(sink):
    committer, put, _ = sink
    put(results("a", "b"))
    put(results("a", "c"))
    put(results("x", code="media_missing"))
    put(results("y", code="no_frames"))
    committer.commit()

    assert committer.statuses == {"ok": 3, "error": 2}
    assert committer.error_codes == {"media_missing": 1, "no_frames": 1}
    assert committer.num_generated_tokens == 15
    assert committer.num_prompt_tokens == 30


def test_a_crash_between_stage_and_commit_leaves_no_trace(tmp_path, sink):
    _, put, _ = sink
    put(results("a", "b", "c", "d"))
    put(results("e"))  # staged, never committed

    done = committed_ids(committed_parts(tmp_path), SCHEMA)  # the next driver
    open_staging(tmp_path, "r2")

    assert done.contains(pa.array(list("abcde"))).tolist() == [True, True, True, True, False]
    assert pq.read_table(tmp_path).num_rows == 4  # readers skip what is not a part
    assert [path.name for path in (tmp_path / "_staging").iterdir()] == ["r2"]


def test_a_writer_that_outlives_its_driver_cannot_write(tmp_path):
    dead = open_staging(tmp_path, "r1")
    open_staging(tmp_path, "r2")

    with pytest.raises(ValueError, match="must be a directory that all nodes of the cluster share"):
        stage(results("a"), staging=str(dead), schema=SCHEMA)


def test_a_staged_file_that_the_driver_cannot_see_is_explained(sink):
    with pytest.raises(ValueError, match="not visible to the driver"):
        sink[0].add("/elsewhere/x.parquet", 1)


def test_an_empty_commit_writes_nothing(tmp_path, sink):
    sink[0].commit()

    assert committed_parts(tmp_path) == []
