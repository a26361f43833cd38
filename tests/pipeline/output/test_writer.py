"""Rows become visible whole, once, and only through the driver."""

import errno
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.ledger import OutputIndex, committed_parts, hash_ids, read_index
from pipeline.output.store import LocalStore
from pipeline.output.writer import PartWriter
from pipeline.schema import ErrorCode, InputColumns, check_input

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


def writer_of(path, run_id="r1", *, retry=(), **options):
    store = LocalStore(path)
    store.prepare()
    store.clean()
    index = read_index(store, committed_parts(store), SCHEMA, retry=retry)
    options = {"rows_per_part": 4, "max_part_age_s": 60, **options}
    return PartWriter(store, run_id, SCHEMA, index, **options)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def writer(tmp_path, clock):
    return writer_of(tmp_path, clock=clock)


def parts_of(path):
    return committed_parts(LocalStore(path))


def ids_in(output):
    return [row_id for part in parts_of(output) for row_id in ids_of(output / part)]


def ids_of(part):
    return pq.read_table(part, columns=["row_id"])["row_id"].to_pylist()


def rows_in(output):
    return {row["row_id"]: row for row in pq.read_table(output).to_pylist()}


def test_columns_that_the_output_does_not_have_are_dropped(tmp_path, writer):
    writer.add(results("a").append_column("prompt_patches", pa.array([b"x"], pa.large_binary())))
    writer.commit()

    (part,) = parts_of(tmp_path)
    assert pq.read_schema(tmp_path / part).equals(SCHEMA)


def test_parts_have_a_bounded_number_of_rows_and_the_recipe(tmp_path, writer):
    writer.add(results("a", "b"))
    writer.add(results("c"))
    assert parts_of(tmp_path) == []  # 3 of 4 rows

    writer.add(results(*"defghi"))

    parts = parts_of(tmp_path)
    assert parts == [f"part-00000{n}-r1.parquet" for n in range(3)]
    assert [ids_of(tmp_path / part) for part in parts] == [list("abcd"), list("efgh"), ["i"]]
    assert pq.read_schema(tmp_path / parts[0]).metadata[b"moonsweep.recipe"] == b"{}"


def test_parts_are_numbered_on_over_runs(tmp_path, writer):
    writer.add(results(*"abcd"))
    later = writer_of(tmp_path, "a0")
    later.add(results(*"efgh"))

    assert parts_of(tmp_path) == ["part-000000-r1.parquet", "part-000001-a0.parquet"]


def test_old_rows_are_committed_though_they_are_few(tmp_path, writer, clock):
    writer.add(results("a"))
    clock.now_s = 59.0
    writer.commit_if_due()
    assert ids_in(tmp_path) == []

    clock.now_s = 60.0
    writer.commit_if_due()

    assert ids_in(tmp_path) == ["a"]


def test_old_rows_are_committed_though_nothing_comes_after_them(
    tmp_path, writer, clock, monkeypatch
):
    monkeypatch.setattr("pipeline.output.writer._CHECK_AGE_S", 0.01)
    with writer.on_time():
        writer.add(results("a"))
        clock.now_s = 60.0
        deadline = time.monotonic() + 30
        while ids_in(tmp_path) != ["a"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_large_rows_are_committed_though_they_are_few(tmp_path, writer, monkeypatch):
    writer.add(results("a"))
    assert ids_in(tmp_path) == []
    monkeypatch.setattr("pipeline.output.writer._MAX_WAITING_BYTES", writer._waiting_bytes + 1)

    writer.add(results("b"))

    assert ids_in(tmp_path) == ["a", "b"]


def test_row_groups_have_a_bounded_number_of_bytes(tmp_path, writer, monkeypatch):
    monkeypatch.setattr("pipeline.output.writer._ROW_GROUP_BYTES", 1)

    writer.add(results(*"abcd"))

    (part,) = parts_of(tmp_path)
    assert pq.ParquetFile(tmp_path / part).metadata.num_row_groups == 4


def test_a_row_that_comes_twice_is_committed_once(tmp_path, writer):
    writer.add(results("a", "b"))
    writer.add(results("b", "c", "d"))  # one commit, b in it twice
    writer.add(results("a", "d", "e", "f"))  # a later commit
    writer.commit()

    assert ids_in(tmp_path) == list("abcdef")
    assert writer.num_rows == 6


def test_counts_are_of_committed_rows(writer):
    writer.add(results("a", "b"))
    writer.add(results("a", "c"))
    writer.add(results("x", code="media_missing"))
    writer.add(results("y", code="no_frames"))
    writer.commit()

    assert writer.statuses == {"ok": 3, "error": 2}
    assert writer.error_codes == {"media_missing": 1, "no_frames": 1}
    assert writer.num_generated_tokens == 15
    assert writer.num_prompt_tokens == 30


def test_an_empty_commit_writes_nothing(tmp_path, writer):
    writer.commit()

    assert parts_of(tmp_path) == []


def test_a_failed_row_is_replaced_where_it_stands(tmp_path, writer):
    writer.add(results("a", "b", "c"))
    writer.add(results("x", "y", code="media_missing"))
    writer.add(results("z", code="no_frames"))
    writer.commit()
    before = [ids_of(tmp_path / part) for part in parts_of(tmp_path)]

    again = writer_of(tmp_path, "r2", retry=[ErrorCode.MEDIA_MISSING])
    again.add(results("x"))
    again.add(results("y", code="media_corrupt"))
    again.add(results("z"))  # not asked for: dropped
    again.commit()

    assert [ids_of(tmp_path / part) for part in parts_of(tmp_path)] == before
    rows = rows_in(tmp_path)
    assert (rows["x"]["caption"], rows["x"]["attempts"]) == ("about x", 2)
    assert (rows["y"]["error_code"], rows["y"]["attempts"]) == ("media_corrupt", 2)
    assert (rows["z"]["error_code"], rows["z"]["attempts"]) == ("no_frames", 1)
    assert rows["a"]["attempts"] == 1
    assert (again.num_rows, again.index.num_rows) == (2, 6)


def test_a_replaced_row_that_comes_again_is_dropped(tmp_path, writer):
    writer.add(results("x", code="media_missing"))
    writer.commit()
    again = writer_of(tmp_path, "r2", retry=[ErrorCode.MEDIA_MISSING])
    for _ in range(2):
        again.add(results("x"))
        again.commit()

    assert again.num_rows == 1
    assert rows_in(tmp_path)["x"]["attempts"] == 2


def test_a_reader_never_sees_a_row_twice_or_a_part_in_pieces_while_rows_are_replaced(
    tmp_path, writer, monkeypatch
):
    writer.add(results("a", "b", code="media_missing"))
    writer.commit()
    again = writer_of(tmp_path, "r2", retry=[ErrorCode.MEDIA_MISSING])
    seen = []
    rename = Path.rename

    def look_around(self, target):
        seen.append(ids_in(tmp_path))
        result = rename(self, target)
        seen.append(ids_in(tmp_path))
        return result

    monkeypatch.setattr(Path, "rename", look_around)
    again.add(results("a"))
    again.commit()
    again.add(results("b"))
    again.commit()

    assert seen == [["a", "b"]] * 4


def test_rows_that_killed_runs_had_started_count_that_as_attempts(tmp_path):
    (hash_,) = hash_ids(pa.array(["a"])).tolist()
    writer = writer_of(tmp_path, in_flight_counts={hash_: 2})
    writer.add(results("a", "b"))
    writer.commit()

    assert {row_id: row["attempts"] for row_id, row in rows_in(tmp_path).items()} == {
        "a": 3,
        "b": 1,
    }


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_full_disk_loses_nothing_and_leaves_no_rubbish(tmp_path, writer, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer.add(results("a"))
    writer.commit()
    writer.add(results("b"))
    with monkeypatch.context() as patch:
        if step == "fsync":
            patch.setattr("os.fsync", full)
        elif step == "rename":
            patch.setattr(Path, "rename", full)
        else:
            patch.setattr(Path, "open", lambda *_: full())
        with pytest.raises(OSError, match=r"No space left on device.*part-000001-r1.parquet"):
            writer.commit()
    assert ids_in(tmp_path) == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == parts_of(tmp_path)

    writer.commit()  # the rows still wait

    assert ids_in(tmp_path) == ["a", "b"]


def test_a_file_that_the_kernel_cuts_never_becomes_a_part(tmp_path):
    script = f"""
        import resource, signal
        from tests.pipeline.output.test_writer import *
        path = Path({str(tmp_path)!r})
        writer = writer_of(path, rows_per_part=10**6)
        writer.add(results("a"))
        writer.commit()
        size = (path / parts_of(path)[0]).stat().st_size
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
        writer.add(results(*(f"row {{n * n}}" for n in range(5000))))
        try:
            writer.commit()
        except OSError as error:
            print(errno.errorcode[error.errno], sorted(p.name for p in path.iterdir()))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )

    assert run.stdout.strip() == "EFBIG ['part-000000-r1.parquet']"
    assert ids_in(tmp_path) == ["a"]


def test_what_a_killed_driver_half_wrote_is_skipped_by_readers_and_removed_by_the_next(
    tmp_path, writer
):
    writer.add(results("a"))
    writer.commit()
    (tmp_path / ".part-000001-r1.parquet.new").write_bytes(b"PAR1 half")

    assert list(rows_in(tmp_path)) == ["a"]
    writer_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == parts_of(tmp_path)


def test_a_driver_that_lost_its_lock_writes_nothing(tmp_path):
    def lost():
        raise OSError("taken over")

    writer = writer_of(tmp_path, check=lost)
    writer.add(results("a"))

    with pytest.raises(OSError, match="taken over"):
        writer.commit()
    assert parts_of(tmp_path) == []


def test_nothing_is_held_of_a_new_output():
    assert OutputIndex.empty().num_rows == 0


def test_a_row_that_comes_twice_has_one_caption(writer):
    writer.add(results("a", "b"))
    writer.add(results("a"))
    writer.commit()

    assert writer.captions.summary().num_captions == 2
