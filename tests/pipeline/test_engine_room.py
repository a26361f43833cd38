"""Engines on CPUs have processors of their own while they are the slower half of a run."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.engine_room import EngineRoom
from pipeline.schema import InputColumns
from pipeline.watch import Watch

_WAIT = "import sys, threading; threading.Thread(target=sys.stdin.read).start(); print(flush=True)"
ALL = os.sched_getaffinity(0)
BUT_LAST = set(sorted(ALL)[:-1]) or ALL  # one processor cannot be given away


@pytest.fixture
def start():
    """Starts processes that wait, with two threads, under some name."""
    started = []

    def start(name):
        process = subprocess.Popen(
            [name, "-c", _WAIT],
            executable=sys.executable,
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


def processors(pid):
    """Those of all threads of a process."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    (found,) = {frozenset(os.sched_getaffinity(int(thread.name))) for thread in threads}
    return found


def sight(idle_share):
    return replace(Watch(10, 0, InputColumns()).sight(), idle_share=idle_share)


def test_all_but_ranks_make_room_while_the_engines_are_busy(start):
    rank, preparer = start("ray::Rank.generate"), start("ray::MapWorker(MapBatches(_Preparer))")
    room = EngineRoom(num_threads=1)

    room.show(sight(None))
    assert processors(preparer) == processors(os.getpid()) == ALL
    room.show(sight(0.05))
    late = start("ray::IDLE")
    assert processors(preparer) == processors(os.getpid()) == processors(late) == BUT_LAST
    new_rank = start("ray::Rank.generate")  # in place of a dead one, by Ray that made room
    room.show(sight(0.05))
    assert processors(rank) == processors(new_rank) == ALL

    room.show(sight(0.5))
    assert processors(preparer) == processors(late) == processors(os.getpid()) == ALL


def test_the_end_of_a_run_takes_the_room_back(start):
    room, preparer = EngineRoom(num_threads=1), start("preparer")
    start("ray::Rank.generate")
    room.show(sight(0.0))
    assert processors(preparer) == BUT_LAST
    room.close(sight(0.0))
    assert processors(preparer) == processors(os.getpid()) == ALL


def test_what_somebody_bound_to_processors_stays_there(start):
    room, bound = EngineRoom(num_threads=1), start("theirs")
    start("ray::Rank.generate")
    last = {max(ALL)}
    for thread in Path(f"/proc/{bound}/task").iterdir():
        os.sched_setaffinity(int(thread.name), last)

    room.show(sight(0.0))
    assert processors(os.getpid()) == BUT_LAST
    assert processors(bound) == last
    room.close(sight(0.0))
    assert processors(os.getpid()) == ALL
    assert processors(bound) == last


def test_engines_that_need_all_processors_are_left_alone(start):
    room, preparer = EngineRoom(num_threads=len(ALL)), start("preparer")
    start("ray::Rank.generate")
    room.show(sight(0.0))
    assert processors(preparer) == processors(os.getpid()) == ALL
