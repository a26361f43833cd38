"""What an output directory holds, and who may write to it."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ledger import (
    IdSet,
    committed_ids,
    committed_parts,
    hash_ids,
    lock_output,
    open_staging,
)

SCHEMA = pa.schema([("row_id", pa.string()), ("caption", pa.string())])


def write_part(path, ids):
    pq.write_table(pa.table([ids, ["x"] * len(ids)], SCHEMA), path)


def test_an_id_is_new_once():
    ids = IdSet()

    assert ids.add(pa.array(["a", "b", "a"])).tolist() == [True, True, False]
    assert ids.add(pa.array(["c", "b"])).tolist() == [True, False]
    assert ids.add(pa.array([], pa.string())).tolist() == []
    assert ids.contains(pa.array(["a", "c", "d"])).tolist() == [True, True, False]
    assert len(ids) == 3


def test_many_small_additions_give_the_same_set_as_a_plain_one():
    generator = np.random.default_rng(0)
    ids, plain = IdSet(), set()
    for _ in range(200):
        some = [str(number) for number in generator.integers(0, 3000, 40)]
        expected = []
        for one in some:
            expected.append(one not in plain)
            plain.add(one)
        assert ids.add(pa.array(some)).tolist() == expected

    assert len(ids) == len(plain)


def test_hashes_do_not_depend_on_the_process():
    # A stored constant: a resumed run must find the ids of a run on another machine.
    assert hash_ids(pa.array(["clips.parquet#0"])).tolist() == [9584332528754501815]


def test_only_whole_parts_count_as_committed(tmp_path):
    write_part(tmp_path / "part-r-00000.parquet", ["a", "b"])
    write_part(tmp_path / "part-r-00001.parquet", ["c"])
    staging = tmp_path / "_staging" / "r"
    staging.mkdir(parents=True)
    write_part(staging / "x.parquet", ["d"])

    parts = committed_parts(tmp_path)

    assert [part.name for part in parts] == ["part-r-00000.parquet", "part-r-00001.parquet"]
    ids = committed_ids(parts, SCHEMA)
    assert ids.contains(pa.array(["a", "b", "c", "d"])).tolist() == [True, True, True, False]


def test_parts_with_other_columns_are_refused(tmp_path):
    write_part(tmp_path / "part-r-00000.parquet", ["a"])

    with pytest.raises(ValueError, match=r"part-r-00000.parquet has other columns .*--columns"):
        committed_ids(committed_parts(tmp_path), SCHEMA.append(pa.field("n", pa.int8())))


def test_a_damaged_part_is_refused_by_name(tmp_path):
    (tmp_path / "part-r-00000.parquet").write_bytes(b"PAR1 no more")

    with pytest.raises(ValueError, match=r"part-r-00000.parquet cannot be read .*delete it"):
        committed_ids(committed_parts(tmp_path), SCHEMA)


def test_left_overs_of_dead_runs_are_removed(tmp_path):
    old = open_staging(tmp_path, "old")
    write_part(old / "x.parquet", ["a"])

    new = open_staging(tmp_path, "new")

    assert list((tmp_path / "_staging").iterdir()) == [new]


def test_a_second_driver_is_refused_while_the_first_runs(tmp_path):
    with (
        lock_output(tmp_path),
        pytest.raises(ValueError, match=rf"another job writes to .*process {os.getpid()} on"),
        lock_output(tmp_path),
    ):
        pass
    with lock_output(tmp_path):
        pass  # released


def test_the_lock_of_a_killed_driver_is_stale(tmp_path):
    script = f"""
        import os, pathlib, signal
        from pipeline.ledger import lock_output
        with lock_output(pathlib.Path({str(tmp_path)!r})):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    code = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode
    assert code < 0
    assert json.loads((tmp_path / "_lock").read_text())["host"] == socket.gethostname()

    with lock_output(tmp_path):
        pass


def test_a_lock_from_another_host_is_left_to_the_user(tmp_path):
    (tmp_path / "_lock").write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": "1"}))

    with (
        pytest.raises(ValueError, match=r"a job on elsewhere \(process 7\) .* delete .*_lock"),
        lock_output(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("started", "is_refused"),
    [pytest.param(None, True, id="alive"), pytest.param("1", False, id="the pid was used again")],
)
def test_without_file_locks_the_process_start_time_decides(
    tmp_path, monkeypatch, started, is_refused
):
    def no_locks(_descriptor, _operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with lock_output(tmp_path):
        owner = json.loads((tmp_path / "_lock").read_text())
        if started is not None:
            (tmp_path / "_lock").write_text(json.dumps({**owner, "started": started}))
        if is_refused:
            with pytest.raises(ValueError, match="another job"), lock_output(tmp_path):
                pass
        else:
            with lock_output(tmp_path):
                pass


def test_an_output_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")

    with (
        pytest.raises(ValueError, match="cannot write to the output"),
        lock_output(tmp_path / "file"),
    ):
        pass
