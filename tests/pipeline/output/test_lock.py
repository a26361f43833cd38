"""Who may write to an output."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pyarrow.fs as pafs
import pytest

from pipeline.output import lock as lock_module
from pipeline.output.lock import LOCK, lock_output
from pipeline.output.store import LocalStore, ObjectStore

ELSEWHERE = {"host": "elsewhere", "machine": "m", "pid": 7, "started": "1", "token": "t", "beat": 0}


class WholeObjects(ObjectStore):
    """An object store on a local disk; as with a real one, nobody sees an object half-written."""

    _turn = threading.Lock()

    def read(self, name):
        with self._turn:
            return super().read(name)

    def write(self, name, content):
        with self._turn:
            super().write(name, content)


@pytest.fixture(params=["directory", "objects"])
def store(request, tmp_path, monkeypatch):
    """A directory, and the same as an object store, where no kernel has locks."""
    monkeypatch.setattr(lock_module, "_SETTLE_S", 0.0)
    monkeypatch.setattr(lock_module, "STALE_AFTER_S", 0.5)
    monkeypatch.setattr(lock_module, "BEAT_S", 0.05)
    if request.param == "directory":
        return LocalStore(tmp_path / "out")
    return WholeObjects("mock://out", pafs.LocalFileSystem(), str(tmp_path))


@pytest.fixture
def objects(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "_SETTLE_S", 0.0)
    return WholeObjects("mock://out", pafs.LocalFileSystem(), str(tmp_path))


def owner_of(store):
    """Who stands in the lock; read again while it is made, which no object store shows."""
    while (content := store.read(LOCK)) == b"":
        time.sleep(0.01)
    return json.loads(content)


def put(store, owner):
    store.prepare()
    store.write(LOCK, json.dumps(owner).encode())


def test_a_second_driver_is_refused_while_the_first_runs(store):
    with (
        lock_output(store),
        pytest.raises(ValueError, match=rf"another job writes to .*process {os.getpid()} on"),
        lock_output(store),
    ):
        pass
    with lock_output(store):
        pass  # released


def test_what_a_killed_writer_left_is_removed_by_the_next_owner_alone(tmp_path):
    store = LocalStore(tmp_path)
    left = tmp_path / ".part-0.parquet.0a.new"
    with lock_output(store):
        left.write_bytes(b"half")  # the owner writes it
        with pytest.raises(ValueError, match="another job"), lock_output(store):
            pass
        assert left.exists()
    with lock_output(store):
        assert not left.exists()


def test_the_lock_of_a_killed_driver_is_stale(tmp_path):
    store = LocalStore(tmp_path)
    script = f"""
        import os, pathlib, signal
        from pipeline.output.lock import lock_output
        from pipeline.output.store import LocalStore
        with lock_output(LocalStore(pathlib.Path({str(tmp_path)!r}))):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    code = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode
    assert code < 0
    assert owner_of(store)["host"] == socket.gethostname()

    with lock_output(store):
        pass
    put(WholeObjects("mock://out", pafs.LocalFileSystem(), str(tmp_path)), owner_of(store))
    with lock_output(store):
        pass


def test_a_living_driver_on_another_machine_is_seen_by_its_heart(store):
    put(store, ELSEWHERE)
    ended = threading.Event()

    def live():
        beat = 0
        while not ended.wait(0.05):
            beat += 1
            (lock_module._write)(store, {**ELSEWHERE, "beat": beat})

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with (
            pytest.raises(ValueError, match=r"another job .* \(process 7 on elsewhere\)"),
            lock_output(store),
        ):
            pass
    finally:
        ended.set()
        thread.join()


def test_a_dead_driver_on_another_machine_is_seen_by_its_silence(store, caplog):
    put(store, ELSEWHERE)

    with lock_output(store):
        assert owner_of(store)["host"] == socket.gethostname()

    assert "process 7 on elsewhere; watching for 0.5 s whether it lives" in caplog.text


def test_an_owner_beats(store):
    with lock_output(store):
        deadline = time.monotonic() + 30
        while owner_of(store)["beat"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        pytest.param(ELSEWHERE, "process 7 on elsewhere", id="to one that runs"),
        pytest.param({}, "a job that has ended", id="to one that released it since"),
    ],
)
def test_who_lost_the_output_may_not_write_to_it(store, other, name):
    with lock_output(store) as lock:
        lock.check()
        put(store, other)
        with pytest.raises(OSError, match=f"was taken over by {name}"):
            lock.check()
    assert owner_of(store) == other  # and leaves the other's lock alone


def test_a_beat_that_is_half_written_is_no_loss(store, monkeypatch):
    with lock_output(store) as lock:
        mine = owner_of(store)
        monkeypatch.setattr(lock_module.time, "sleep", lambda _seconds: put(store, mine))
        store.write(LOCK, b'{"host": ')
        lock.check()


def test_who_cannot_beat_may_have_lost_the_output(objects, monkeypatch):
    with lock_output(objects) as lock:
        monkeypatch.setattr(lock_module, "STALE_AFTER_S", 0.0)
        with pytest.raises(OSError, match="could not be written to"):
            lock.check()


def test_who_was_suspended_may_have_lost_the_output(objects, monkeypatch):
    def later(clock, now=time.clock_gettime):
        return now(clock) + (60.0 if clock == time.CLOCK_BOOTTIME else 0.0)

    with lock_output(objects) as lock:
        lock.check()
        monkeypatch.setattr("time.clock_gettime", later)
        with pytest.raises(OSError, match="could not be written to for 30 s"):
            lock.check()


def test_of_two_that_start_together_the_last_to_write_wins(objects, monkeypatch):
    def meanwhile(_seconds):
        put(objects, ELSEWHERE)

    monkeypatch.setattr(lock_module.time, "sleep", meanwhile)
    with (
        pytest.raises(ValueError, match=r"another job .* \(process 7 on elsewhere\)"),
        lock_output(objects),
    ):
        pass


@pytest.mark.parametrize(
    ("started", "is_refused"),
    [pytest.param(None, True, id="alive"), pytest.param("1", False, id="the pid was used again")],
)
def test_without_file_locks_the_process_start_time_decides(
    objects, monkeypatch, started, is_refused
):
    with lock_output(objects):
        mine = owner_of(objects)
    put(objects, {**mine, **lock_module._me(), **({} if started is None else {"started": started})})
    if is_refused:
        with pytest.raises(ValueError, match="another job"), lock_output(objects):
            pass
    else:
        with lock_output(objects):
            pass


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def no_locks(_descriptor, _operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(lock_module, "_SETTLE_S", 0.0)
    store = LocalStore(tmp_path)
    with (
        lock_output(store),
        pytest.raises(ValueError, match="another job"),
        lock_output(store),
    ):
        pass
    with lock_output(store):
        pass


def test_an_output_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")

    with (
        pytest.raises(ValueError, match=r"cannot write to the output .*file.*File exists"),
        lock_output(LocalStore(tmp_path / "file")),
    ):
        pass


def test_an_output_without_permission_is_refused(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", denied)
    with (
        pytest.raises(ValueError, match=r"cannot write to the output .*Permission denied"),
        lock_output(LocalStore(tmp_path)),
    ):
        pass
