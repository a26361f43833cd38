"""The faults of a disturbed run, how they fall, and how the run is judged."""

import json
import os
import random
import re
import subprocess
import sys
from argparse import Namespace
from collections import Counter

import pyarrow.parquet as pq
import pytest

from jobs.cli import processes
from jobs.faults import chaos
from jobs.faults.chaos import DisturbedRun, Fault, FaultCounts

# A job in small: it commits a row every 0.15 s, and replaces its rank when that is dead or stopped.
# The rank is a shell that ends with its parent.
DRIVER = """
import subprocess, sys, time
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq

def start_rank():
    loop = "while kill -0 $PPID 2>/dev/null; do sleep 0.05; done"
    return subprocess.Popen(["ray::Rank", "-c", loop], executable="/bin/sh")

def is_well(rank):
    stat = Path(f"/proc/{rank.pid}/stat").read_text()
    return rank.poll() is None and stat.rpartition(")")[2].split()[0] != "T"

output = Path(sys.argv[1])
output.mkdir(exist_ok=True)
rank = start_rank()
first = len(list(output.glob("part-*")))
for number in range(first, 14):
    pq.write_table(pa.table({"row_id": [str(number)]}), output / "_new")
    (output / "_new").rename(output / f"part-{number:02}.parquet")
    waits = True
    while waits:
        time.sleep(0.15)
        if not is_well(rank):
            rank.kill()
            rank.wait()
            rank = start_rank()
        # If it is to be killed, it does not end before, however late that comes.
        waits = "until-killed" in sys.argv and first == 0 and number == 8
rank.kill()
"""


def row(number, **changes):
    return {"row_id": number, "status": "ok", "caption": "a", "attempts": 1, **changes}


@pytest.mark.parametrize(
    ("disturbed", "expected"),
    [
        pytest.param([row(0), row(1, attempts=2)], {}, id="equal"),
        pytest.param([row(0)], {"lost": 1, "rows": 1}, id="lost"),
        pytest.param([row(0), row(1), row(1)], {"doubled": 1, "rows": 3}, id="doubled"),
        pytest.param([row(0), row(1, caption="b")], {"changed": 1}, id="changed"),
        pytest.param([row(0), row(1), row(2)], {"changed": 1, "rows": 3}, id="invented"),
    ],
)
def test_every_difference_is_counted(disturbed, expected):
    found = chaos.compare([row(0), row(1)], disturbed)

    wanted = {"rows": 2, "lost": 0, "doubled": 0, "changed": 0, **expected}
    assert {name: found[name] for name in wanted} == wanted


def test_faults_fall_in_order_and_on_every_kind():
    kinds = (*chaos.VICTIMS, "node")
    options = Namespace(rows=100, driver_kills=2, other_kills=12, nodes=2, kinds=kinds)
    faults = chaos.make_faults(options, random.Random(0))
    assert faults == sorted(faults)
    assert faults == chaos.make_faults(options, random.Random(0))
    assert all(1 <= fault.num_rows <= 80 for fault in faults)
    counts = Counter(fault.kind for fault in faults)
    assert counts == dict.fromkeys(("driver", "node", "stop", *chaos.VICTIMS), 2)
    options.nodes = 0
    assert "node" not in {fault.kind for fault in chaos.make_faults(options, random.Random(0))}
    options.kinds = ("stop",)
    faults = chaos.make_faults(options, random.Random(0))
    assert {fault.kind for fault in faults} == {"driver", "stop"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--kinds", "rank,disk"], "unknown disk; choose from rank", id="unknown"),
        pytest.param(["--kinds", "node", "--nodes", "0"], "needs --nodes", id="no nodes"),
    ],
)
def test_faults_that_cannot_be_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        chaos.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_command_survives_its_faults_and_is_started_again_after_its_own_death(tmp_path):
    output = tmp_path / "rows"
    faults = [Fault(2, "rank"), Fault(4, "stop"), Fault(6, "driver"), Fault(9, "client")]
    command = [sys.executable, "-c", DRIVER, str(output), "until-killed"]
    counts = DisturbedRun(command, output, nodes=None, seed=0).run(faults)
    assert counts.kills == Counter(rank=1, stop=1, driver=1)
    assert counts.missed == Counter(client=1)  # the job has no such process
    assert (counts.starts, counts.orphans, counts.reads_with_doubled_rows) == (2, 0, 0)
    assert set(pq.read_table(output)["row_id"].to_pylist()) == set(map(str, range(14)))


def test_a_rank_that_stays_stopped_counts_as_an_orphan(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos, "_END_S", 0.3)
    output = tmp_path / "rows"
    command = [sys.executable, "-c", DRIVER.replace('!= "T"', '!= "no state"'), str(output)]
    counts = DisturbedRun(command, output, nodes=None, seed=0).run([Fault(2, "stop")])
    assert (counts.kills, counts.orphans) == (Counter(stop=1), 1)


def test_a_command_that_fails_by_itself_ends_the_run_with_its_log(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such column')"]
    with pytest.raises(RuntimeError, match="exit code 1: no such column"):
        DisturbedRun(command, tmp_path / "rows", nodes=None, seed=0).run([])


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        pytest.param({"rows": 9}, {}, id="too few rows"),
        pytest.param({"changed": 1}, {}, id="changed"),
        pytest.param({}, {"reads_with_doubled_rows": 1}, id="a reader saw a row twice"),
        pytest.param({}, {"orphans": 1}, id="processes outlived their driver"),
        pytest.param({}, {"missed": Counter(driver=1)}, id="the run ended before it was killed"),
        pytest.param({}, {"kills": Counter(driver=1)}, id="most faults fell on nobody"),
    ],
)
def test_a_run_that_shows_nothing_does_not_pass(found, counts):
    faults = [Fault(1, "driver"), Fault(2, "rank")]
    good = {"rows": 10, "lost": 0, "doubled": 0, "changed": 0}
    kills = Counter(driver=1, rank=1)
    assert chaos.is_well(good, FaultCounts(kills=kills), faults, 10)
    counts = FaultCounts(**{"kills": kills, **counts})
    assert not chaos.is_well({**good, **found}, counts, faults, 10)


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


@pytest.mark.ray
@pytest.mark.slow
def test_killed_and_stopped_ranks_change_no_row():
    # With this seed the kill comes first. While a stopped rank is found out, which takes long, the
    # other group may answer all rows, and then there would be no rank left to kill.
    arguments = "--rows 120 --max-tokens 16 --nodes 0 --driver-kills 0 --other-kills 2 --seed 2"
    ranks = "--kinds rank,stop --groups 2 --expert-parallel 2"
    command = [sys.executable, "-m", "jobs.faults.chaos", *arguments.split(), *ranks.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["chaos"]
    assert (found["rows"], found["kills"]) == (120, {"rank": 1, "stop": 1})
