"""The faults of a drill, and how it is judged."""

import os
import random
import re
import subprocess
import sys
from argparse import Namespace
from collections import Counter

import pytest

from jobs.cli import processes
from jobs.faults import chaos
from jobs.faults.chaos import Fault, Tally


def row(number, **changes):
    return {"row_id": number, "status": "ok", "caption": "a", "attempts": 1, **changes}


@pytest.mark.parametrize(
    ("wild", "expected"),
    [
        pytest.param([row(0), row(1, attempts=2)], {}, id="equal"),
        pytest.param([row(0)], {"lost": 1, "rows": 1}, id="lost"),
        pytest.param([row(0), row(1), row(1)], {"doubled": 1, "rows": 3}, id="doubled"),
        pytest.param([row(0), row(1, caption="b")], {"changed": 1}, id="changed"),
        pytest.param([row(0), row(1), row(2)], {"changed": 1, "rows": 3}, id="invented"),
    ],
)
def test_every_difference_is_counted(wild, expected):
    found = chaos.compare([row(0), row(1)], wild)

    wanted = {"rows": 2, "lost": 0, "doubled": 0, "changed": 0, **expected}
    assert {name: found[name] for name in wanted} == wanted


def test_blows_fall_in_order_and_on_every_kind():
    options = Namespace(rows=100, driver_kills=2, other_kills=10, nodes=2)
    faults = chaos.make_blows(options, random.Random(0))
    assert faults == sorted(faults)
    assert all(1 <= fault.num_rows <= 80 for fault in faults)
    counts = Counter(fault.kind for fault in faults)
    assert counts == dict.fromkeys(("driver", "node", *chaos.SIGNS), 2)
    options.nodes = 0
    assert "node" not in {fault.kind for fault in chaos.make_blows(options, random.Random(0))}


@pytest.mark.parametrize(
    ("found", "tally"),
    [
        pytest.param({"rows": 9}, {}, id="too few rows"),
        pytest.param({"changed": 1}, {}, id="changed"),
        pytest.param({}, {"reads_with_doubled_rows": 1}, id="a reader saw a row twice"),
        pytest.param({}, {"orphans": 1}, id="processes outlived their driver"),
        pytest.param({}, {"missed": Counter(driver=1)}, id="the run ended before it was killed"),
        pytest.param({}, {"kills": Counter(driver=1)}, id="most faults fell on nobody"),
    ],
)
def test_a_drill_that_shows_nothing_does_not_pass(found, tally):
    faults = [Fault(1, "driver"), Fault(2, "rank")]
    good = {"rows": 10, "lost": 0, "doubled": 0, "changed": 0}
    kills = Counter(driver=1, rank=1)
    assert chaos.is_well(good, Tally(kills=kills), faults, 10)
    assert not chaos.is_well({**good, **found}, Tally(**{"kills": kills, **tally}), faults, 10)


def test_processes_are_found_and_killed():
    command = [sys.executable, "-c", "print(flush=True); input()  # victim 71"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it runs
        (pid,) = processes.find(os.getpid(), re.compile(rb"victim 71"))
        assert pid == child.pid
        assert processes.is_alive(pid)
        assert processes.private_bytes(pid) > 0
        assert processes.kill(pid)
    assert not processes.is_alive(pid)
    assert not processes.kill(pid)
