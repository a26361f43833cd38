"""Engines on CPUs have processors of their own while they are the slower half of a run."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from parallel.ranks.worker import ENGINE_THREAD
from pipeline.cluster.cpu import CpuAffinity
from pipeline.monitor.snapshot import RunMonitor
from pipeline.schema import InputColumns

# Waits in a second thread, which has the name that is its argument.
_WAIT = """
import sys, threading
def wait():
    open(f"/proc/self/task/{threading.get_native_id()}/comm", "w").write(sys.argv[1])
    print(flush=True)
    sys.stdin.read()
threading.Thread(target=wait).start()
"""
ALL = os.sched_getaffinity(0)
BUT_LAST = set(sorted(ALL)[:-1]) or ALL  # one processor cannot be given away


@pytest.fixture
def start():
    """Starts processes that wait, whose second thread has some name."""
    started = []

    def start(thread="other"):
        process = subprocess.Popen(
            [sys.executable, "-c", _WAIT, thread],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process.pid

    yield start
    for process in started:
        process.communicate()


def processors(pid, *, of_engine=False):
    """Those of the threads of a process: of its engine, or of all others."""
    (found,) = {
        frozenset(os.sched_getaffinity(int(thread.name)))
        for thread in Path(f"/proc/{pid}/task").iterdir()
        if ((thread / "comm").read_text() == f"{ENGINE_THREAD}\n") == of_engine
    }
    return found


def snapshot(idle_share):
    return replace(RunMonitor(10, 0, InputColumns()).snapshot(), idle_share=idle_share)


def test_all_but_engines_make_room_while_these_are_busy(start):
    rank, preparer = start(ENGINE_THREAD), start()
    room = CpuAffinity(num_threads=1)

    room.show(snapshot(None))
    assert processors(preparer) == processors(os.getpid()) == ALL
    room.show(snapshot(0.05))
    late = start()
    assert processors(preparer) == processors(os.getpid()) == processors(late) == BUT_LAST
    assert processors(rank) == BUT_LAST  # what receives and answers there
    assert processors(rank, of_engine=True) == ALL

    room.show(snapshot(0.5))
    assert processors(preparer) == processors(late) == processors(os.getpid()) == ALL
    assert processors(rank) == processors(rank, of_engine=True) == ALL


def test_an_engine_that_is_new_may_compute_everywhere(start):
    room = CpuAffinity(num_threads=1)
    start(ENGINE_THREAD)
    room.show(snapshot(0.05))
    new = start(ENGINE_THREAD)  # in place of a dead one, by Ray that made room
    assert processors(new, of_engine=True) == BUT_LAST
    room.show(snapshot(0.05))
    assert processors(new, of_engine=True) == ALL
    room.close(snapshot(0.05))


def test_the_end_of_a_run_takes_the_room_back(start):
    room, preparer = CpuAffinity(num_threads=1), start()
    start(ENGINE_THREAD)
    room.show(snapshot(0.0))
    assert processors(preparer) == BUT_LAST
    room.close(snapshot(0.0))
    assert processors(preparer) == processors(os.getpid()) == ALL


def test_what_somebody_bound_to_processors_stays_there(start):
    room, bound = CpuAffinity(num_threads=1), start()
    start(ENGINE_THREAD)
    last = {max(ALL)}
    for thread in Path(f"/proc/{bound}/task").iterdir():
        os.sched_setaffinity(int(thread.name), last)

    room.show(snapshot(0.0))
    assert processors(os.getpid()) == BUT_LAST
    assert processors(bound) == last
    room.close(snapshot(0.0))
    assert processors(os.getpid()) == ALL
    assert processors(bound) == last


def test_engines_that_need_all_processors_are_left_alone(start):
    room, preparer = CpuAffinity(num_threads=len(ALL)), start()
    start(ENGINE_THREAD)
    room.show(snapshot(0.0))
    assert processors(preparer) == processors(os.getpid()) == ALL
