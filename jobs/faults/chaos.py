r"""Kill and stop processes of a job at random moments, and check that its output does not change.

    python -m jobs.faults.chaos --rows 400 --driver-kills 5
    python -m jobs.faults.chaos --nodes 0 --driver-kills 0 --other-kills 4 --kinds rank,stop \
        --groups 2 --expert-parallel 2

The job captions generated clips, some of them broken, twice. The baseline run is undisturbed. The
disturbed run writes to another output, on a simulated cluster of several nodes, while faults of
these kinds fall:

  rank      kill -9 of a process that holds the model, or with --expert-parallel a part of it
  stop      SIGSTOP of such a process: it must be found silent, killed and replaced
  decoder   kill -9 of a process that decodes media
  preparer  kill -9 of a worker that prepares rows
  client    kill -9 of the worker that sends rows to the ranks
  node      the loss of a whole node (with --nodes)
  spot      the announced end of a node, some seconds before it is lost (with --nodes)
  driver    kill -9 of the command itself, which is then started again (--driver-kills)

A reader looks at the output meanwhile. With `--nodes 0` each driver has a Ray of its own, and all
its processes must be gone a minute and a half after the driver. The last line is one JSON object;
the exit code is 1 if any row is lost, doubled or changed.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.cli.options import Formatter, Parser, count, names_among, positive
from jobs.cli.processes import find, is_alive, kill, stop
from jobs.demo.clips import write_clips
from jobs.faults.simulated_nodes import Nodes, simulated_nodes
from pipeline.cluster.processes import descendants

DRIVER, NODE, SPOT, STOP = "driver", "node", "spot", "stop"
_RANK = re.compile(rb"^ray::Rank")
VICTIMS = {  # command lines of the processes that a fault may hit, by its kind
    "rank": _RANK,
    STOP: _RANK,
    "decoder": re.compile(rb"pipeline\.media\.sandbox_process"),
    "preparer": re.compile(rb"^ray::.*_Preparer"),
    "client": re.compile(rb"^ray::.*_Generator"),
}
_COMPARED = ("status", "caption", "error_code", "num_generated_tokens", "frame_times_s", "id")
_BROKEN_EVERY = 20  # rows
_LAST_FAULT = 0.8  # of the rows, so that all faults fall while there is work
_POLL_S = 0.1
_NOTICE_S = 10  # of a spot node: a rank of the demo loads in less
_FIND_S = 2.0  # for a victim to appear; a process that has done its part of a run is gone
# Time for the processes of a killed driver to end: Ray's two agents of a node try for 60 s to
# report to a server that is dead too. A stopped rank is replaced within that time as well.
_END_S = 90.0


@dataclass(frozen=True, order=True)
class Fault:
    """One fault: it falls once this many rows are committed."""

    num_rows: int  # of all rows
    kind: str


@dataclass
class FaultCounts:
    """What was done to a run, and what a reader saw of its output."""

    kills: Counter[str] = field(default_factory=Counter)  # faults that hit, by kind
    missed: Counter[str] = field(default_factory=Counter)  # faults that found no victim
    starts: int = 0
    orphans: int = 0  # processes that outlived their driver, or stayed stopped, and were killed
    reads: int = 0
    reads_with_doubled_rows: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job undisturbed and disturbed, and compare; return 0 if the rows are equal."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if {NODE, SPOT}.issuperset(options.kinds) and options.other_kills and not options.nodes:
        parser.error(f"--kinds {','.join(options.kinds)} needs --nodes")
    folder = Path(options.folder or tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    source = make_input(folder / "clips.parquet", options.rows)
    faults = make_faults(options, random.Random(options.seed))
    baseline, disturbed = folder / "baseline", folder / "disturbed"
    with simulated_nodes(options.nodes) as nodes:
        command = _command(source, options)
        _say("undisturbed ...")
        started_s = time.monotonic()
        with baseline.with_suffix(".log").open("wb") as log:
            subprocess.run([*command, str(baseline)], check=True, stdout=log, stderr=log)
        middle_s = time.monotonic()
        run = DisturbedRun([*command, str(disturbed)], disturbed, nodes, options.seed)
        counts = run.run(faults)
    found = compare(*(pq.read_table(each).to_pylist() for each in (baseline, disturbed)))
    is_equal = is_well(found, counts, faults, options.rows)
    seconds = {
        "baseline_s": round(middle_s - started_s),
        "disturbed_s": round(time.monotonic() - middle_s),
    }
    print(json.dumps({"chaos": {**found, **vars(counts), **seconds, "is_equal": is_equal}}))
    if options.folder is None:
        shutil.rmtree(folder)
    return 0 if is_equal else 1


def make_input(path: Path, num_rows: int) -> Path:
    """Write generated clips to `path`; every twentieth is cut off in its middle."""
    table = pq.read_table(write_clips(path, num_rows, seed=0)).select(["id", "video"])
    videos = [
        video[: len(video) // 3] if row % _BROKEN_EVERY == _BROKEN_EVERY - 1 else video
        for row, video in enumerate(table["video"].to_pylist())
    ]
    column = pa.array(videos, table.schema.field("video").type)
    pq.write_table(table.set_column(1, "video", column), path, row_group_size=32)
    return path


def make_faults(options: argparse.Namespace, chance: random.Random) -> list[Fault]:
    """Draw faults at random moments, in their order; about as many of each kind but the driver."""
    kinds = [kind for kind in options.kinds if kind not in (NODE, SPOT) or options.nodes]
    chance.shuffle(kinds)
    drawn = [kinds[number % len(kinds)] for number in range(options.other_kills)]
    last = int(_LAST_FAULT * options.rows)
    return sorted(
        Fault(chance.randint(1, last), kind) for kind in [DRIVER] * options.driver_kills + drawn
    )


class DisturbedRun:
    """One command that writes `output`, run to its end over many faults.

    It runs again whenever it was killed. Without `nodes`, each run has a Ray of its own. The seed
    is that of the choice among several victims.
    """

    def __init__(
        self, command: Sequence[str], output: Path, nodes: Nodes | None, seed: int
    ) -> None:
        self._command = command
        self._output = output
        self._nodes = nodes
        self._chance = random.Random(seed)
        self._counts = FaultCounts()

    def run(self, faults: Sequence[Fault]) -> FaultCounts:
        """Run the command, and again after each kill, until it ends by itself.

        Raises:
            RuntimeError: the command failed.
        """
        left = list(faults)
        while True:
            with self._driver() as driver:
                if not self._inject_all(driver, left):
                    continue
                while driver.poll() is None:
                    self._read()
                if driver.returncode:
                    raise RuntimeError(f"exit code {driver.returncode}: {self._log.read_text()}")
            self._counts.missed.update(fault.kind for fault in left)
            return self._counts

    @property
    def _log(self) -> Path:
        return self._output.with_suffix(f".{self._counts.starts}.log")

    @contextmanager
    def _driver(self) -> Iterator[subprocess.Popen[bytes]]:
        self._counts.starts += 1
        with self._log.open("wb") as file:
            driver = subprocess.Popen(self._command, stderr=file, stdout=file)
        try:
            yield driver
        finally:
            driver.kill()
            driver.wait()

    def _inject_all(self, driver: subprocess.Popen[bytes], left: list[Fault]) -> bool:
        """Inject faults until the driver has ended; return False if one of them killed it."""
        before = self._read()
        while left:
            num_rows = self._read()
            if driver.poll() is not None:
                return True
            fault = left[0]
            # A start may fail as a whole, so faults but the driver's wait for the first new rows.
            is_at_work = num_rows > before or fault.kind == DRIVER
            if num_rows < fault.num_rows or not is_at_work:
                continue
            left.pop(0)
            _say(f"{num_rows} rows, start {self._counts.starts}: {fault.kind}")
            if fault.kind == DRIVER:
                self._kill_driver(driver)
                return False
            has_hit = True
            if fault.kind == NODE:
                assert self._nodes is not None
                self._nodes.lose_one(self._chance)
            elif fault.kind == SPOT:
                assert self._nodes is not None
                self._nodes.end_one(self._chance, _NOTICE_S)
            else:
                has_hit = self._hit_one(driver, fault)
            (self._counts.kills if has_hit else self._counts.missed)[fault.kind] += 1
        return True

    def _read(self) -> int:
        """Read the output as anybody could, and return how many rows it holds."""
        time.sleep(_POLL_S)
        if not any(self._output.glob("part-*.parquet")):
            return 0
        ids = pq.read_table(self._output, columns=["row_id"])["row_id"].to_pylist()
        self._counts.reads += 1
        self._counts.reads_with_doubled_rows += len(set(ids)) != len(ids)
        return len(ids)

    def _hit_one(self, driver: subprocess.Popen[bytes], fault: Fault) -> bool:
        """Kill or stop one process; return False if no victim appeared in time."""
        hit = stop if fault.kind == STOP else kill
        deadline_s = time.monotonic() + _FIND_S
        while driver.poll() is None and time.monotonic() < deadline_s:
            found = find(os.getpid(), VICTIMS[fault.kind])
            if found and hit(victim := self._chance.choice(found)):
                self._wait_for_end([victim])
                return True
            self._read()
        return False

    def _kill_driver(self, driver: subprocess.Popen[bytes]) -> None:
        """Kill the driver alone; the processes that it started must end by themselves."""
        family = list(descendants(driver.pid))
        driver.kill()
        driver.wait()
        self._counts.kills[DRIVER] += 1
        self._wait_for_end(family)

    def _wait_for_end(self, pids: Sequence[int]) -> None:
        """Wait until processes have ended; kill and count those that do not end in time."""
        deadline_s = time.monotonic() + _END_S
        while any(map(is_alive, pids)) and time.monotonic() < deadline_s:
            self._read()
        self._counts.orphans += sum(kill(pid) for pid in pids if is_alive(pid))


def compare(
    baseline: Sequence[Mapping[str, Any]], disturbed: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """Count how the rows of a disturbed run differ from those of an undisturbed one."""
    expected = {row["row_id"]: row for row in baseline}
    counts = Counter(row["row_id"] for row in disturbed)
    changed = [
        row["row_id"]
        for row in disturbed
        if any(row.get(name) != expected.get(row["row_id"], {}).get(name) for name in _COMPARED)
    ]
    for row_id in changed:
        _say(f"changed: {row_id}")
    return {
        "rows": len(disturbed),
        "lost": len(expected.keys() - counts.keys()),
        "doubled": sum(number - 1 for number in counts.values()),
        "changed": len(changed),
        "errors": sum(row["status"] == "error" for row in disturbed),
        "most_attempts": max((row["attempts"] for row in disturbed), default=0),
    }


def is_well(
    found: Mapping[str, int], counts: FaultCounts, faults: Sequence[Fault], num_rows: int
) -> bool:
    """Tell whether every row is there once, unchanged, and enough faults fell.

    All faults on drivers must have fallen, and more than half of all.
    """
    bad = (found["lost"], found["doubled"], found["changed"], counts.reads_with_doubled_rows)
    return (
        found["rows"] == num_rows
        and not any(bad)
        and not counts.orphans
        and not counts.missed[DRIVER]
        and 2 * counts.kills.total() > len(faults)
    )


def _command(source: Path, options: argparse.Namespace) -> list[str]:
    command = [
        *(sys.executable, "-m", "jobs.caption_videos", "--input", str(source)),
        *("--model", options.model, "--id-column", "id", "--frames", "4", "--temperature", "0"),
        *("--max-tokens", str(options.max_tokens), "--rows-per-part", "4"),
        # In float32 a text does not depend on which rows happen to be computed together.
        *("--max-part-age", "0.5", "--dtype", "float32", "--threads", "1", "--batch-size", "8"),
    ]
    for flag in ("groups", "expert_parallel"):
        if (value := getattr(options, flag)) is not None:
            command += [f"--{flag.replace('_', '-')}", str(value)]
    return [*command, "--output"]


def _say(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m jobs.faults.chaos", description=__doc__, formatter_class=Formatter
    )
    kinds = (*VICTIMS, NODE, SPOT)
    add = parser.add_argument
    add("--rows", type=positive, default=400, help="generated clips")
    add("--driver-kills", type=count, default=5, help="how often to kill the driver")
    add("--other-kills", type=count, default=15, help="faults of all other kinds together")
    add("--kinds", type=names_among(kinds), default=",".join(kinds), help="these other kinds")
    add("--nodes", type=count, default=2, help="nodes beside the head; 0: no simulated cluster")
    add("--groups", type=positive, help="copies of the model; default: as caption_videos chooses")
    add("--expert-parallel", type=positive, help="ranks that share a copy; default: as chosen")
    add("--model", default="demo", help="checkpoint, as for caption_videos")
    add("--max-tokens", type=positive, default=32, help="longest caption, in tokens")
    add("--seed", type=int, default=0, help="of the moments and the victims")
    add("--folder", help="keep input, outputs and logs here; default: a temporary directory")
    return parser


if __name__ == "__main__":
    sys.exit(main())
