"""Parts are written beside the loop that takes results, in the same order and as often."""

import threading
import time

import pytest

from pipeline.output import behind as behind_module
from pipeline.output.behind import writing_behind
from pipeline.output.store import LocalStore
from tests.pipeline.output.test_writer import ids_of, parts_of, results, writer_of


@pytest.fixture
def writer(tmp_path):
    return writer_of(tmp_path, rows_per_part=2)


def slow(monkeypatch, gate):
    write = LocalStore.write

    def write_later(*arguments):
        assert gate.wait(10)
        write(*arguments)

    monkeypatch.setattr(LocalStore, "write", write_later)


def test_the_loop_goes_on_while_a_part_is_written(tmp_path, writer, monkeypatch):
    gate = threading.Event()
    slow(monkeypatch, gate)
    with writing_behind(writer) as behind:
        for number in range(7):
            behind.add(results(str(number)))
        behind.add(results("3"))  # by a task that ran again
        assert parts_of(tmp_path) == []
        assert behind.waited_s < 5
        gate.set()
    writer.commit()

    parts = [ids_of(tmp_path / part) for part in parts_of(tmp_path)]
    assert parts == [["0", "1"], ["2", "3"], ["4", "5"], ["6"]]
    assert writer.num_rows == 7


def test_the_loop_waits_where_the_writer_is_too_slow(writer, monkeypatch):
    gate = threading.Event()
    slow(monkeypatch, gate)
    monkeypatch.setattr(behind_module, "_MAX_BYTES", 4 * results("0").nbytes)
    with writing_behind(writer) as behind:
        for number in range(4):
            behind.add(results(str(number)))
        assert behind.waited_s < 0.1
        threading.Timer(0.3, gate.set).start()
        began = time.monotonic()
        for number in range(4, 8):
            behind.add(results(str(number)))
        assert time.monotonic() - began > 0.2
        assert behind.waited_s > 0.2
    assert writer.num_rows == 8


@pytest.mark.parametrize("ends", ["by the next rows", "at the end"])
def test_what_the_writer_raises_reaches_the_loop_and_no_row_is_lost(
    tmp_path, writer, monkeypatch, ends
):
    def full(*_):
        raise OSError(28, "full")

    def loop():
        with writing_behind(writer) as behind:
            behind.add(results("a", "b"))
            for _ in range(1000 if ends == "by the next rows" else 0):
                time.sleep(0.01)
                behind.add(results("c"))
                added.append("c")

    added = []
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write", full)
        with pytest.raises(OSError, match="full"):
            loop()
    assert len(added) < 1000
    assert parts_of(tmp_path) == []
    writer.commit()
    rows = [row_id for part in parts_of(tmp_path) for row_id in ids_of(tmp_path / part)]
    assert sorted(rows)[:2] == ["a", "b"]


def test_rows_that_were_added_before_the_loop_died_are_with_the_writer(tmp_path, writer):
    def loop():
        with writing_behind(writer) as behind:
            for number in range(5):
                behind.add(results(str(number)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()
    writer.commit()
    assert writer.num_rows == 5
