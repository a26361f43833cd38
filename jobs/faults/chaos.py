"""Kill what runs, at random moments, and see that no row is lost, doubled or changed.

    python -m jobs.faults.chaos --rows 400 --driver-kills 5

The job captions generated clips, some of them broken, once undisturbed. Then it does so again into
another output, on a simulated cluster of several nodes, while kill -9 hits ranks, decoding
processes, workers that prepare rows, the client of the ranks, whole nodes, and the driver, whose
command is then typed again. A reader looks at the output meanwhile. With `--nodes 0` each driver
has a Ray of its own, and all of that must be gone a minute and a half after the driver.
The last line is one JSON object; the exit code is 1 if anything differs.
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

from jobs.cli.options import positive
from jobs.cli.processes import find, is_alive, kill
from jobs.demo.clips import write_clips
from jobs.faults.simulated_nodes import Nodes, simulated_nodes
from pipeline.cluster.processes import descendants

SIGNS = {
    "rank": re.compile(rb"^ray::Rank"),
    "decoder": re.compile(rb"pipeline\.media\.sandbox_process"),
    "preparer": re.compile(rb"^ray::.*_Preparer"),
    "client": re.compile(rb"^ray::.*_Generator"),
}
DRIVER, NODE = "driver", "node"
_COMPARED = ("status", "caption", "error_code", "num_generated_tokens", "frame_times_s", "id")
_BROKEN_EVERY = 20  # rows
_BLOWS_END = 0.8  # of the rows, so that all fall while there is work
_LOOK_S = 0.1
_FIND_S = 2.0  # for a victim to appear; what has done its part of a run is gone
# In which what belongs to a killed driver must be gone: Ray's two agents of a node try for 60 s to
# tell a server that is dead too.
_END_S = 90.0


@dataclass(frozen=True, order=True)
class Fault:
    """What is killed, and when."""

    num_rows: int  # that are committed by then, of all
    kind: str


@dataclass
class Tally:
    """What was done to a run, and what a reader saw of it."""

    kills: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)  # faults that found nobody
    starts: int = 0
    orphans: int = 0  # processes that had to be ended after their driver
    reads: int = 0
    reads_with_doubled_rows: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both, compare; 0 if they are equal."""
    options = _parser().parse_args(arguments)
    folder = Path(options.folder or tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    source = make_input(folder / "clips.parquet", options.rows)
    faults = make_blows(options, random.Random(options.seed))
    calm, wild = folder / "calm", folder / "wild"
    with simulated_nodes(options.nodes) as nodes:
        command = _command(source, options)
        _say("undisturbed ...")
        started_s = time.monotonic()
        with calm.with_suffix(".log").open("wb") as log:
            subprocess.run([*command, "--output", str(calm)], check=True, stdout=log, stderr=log)
        middle_s = time.monotonic()
        tally = Disturbance([*command, "--output", str(wild)], wild, nodes, options.seed).run(
            faults
        )
    found = compare(read_rows(calm), read_rows(wild))
    is_equal = is_well(found, tally, faults, options.rows)
    seconds = {"calm_s": round(middle_s - started_s), "wild_s": round(time.monotonic() - middle_s)}
    print(json.dumps({"chaos": {**found, **vars(tally), **seconds, "is_equal": is_equal}}))
    if options.folder is None:
        shutil.rmtree(folder)
    return 0 if is_equal else 1


def make_input(path: Path, num_rows: int) -> Path:
    """Write generated clips, every twentieth one cut off in its middle."""
    table = pq.read_table(write_clips(path, num_rows, seed=0)).select(["id", "video"])
    videos = [
        video[: len(video) // 3] if row % _BROKEN_EVERY == _BROKEN_EVERY - 1 else video
        for row, video in enumerate(table["video"].to_pylist())
    ]
    column = pa.array(videos, table.schema.field("video").type)
    pq.write_table(table.set_column(1, "video", column), path, row_group_size=32)
    return path


def make_blows(options: argparse.Namespace, chance: random.Random) -> list[Fault]:
    """Blows at random moments, in their order; of each kind but the driver about as many."""
    kinds = [*SIGNS, *([NODE] if options.nodes else [])]
    chance.shuffle(kinds)
    struck = [kinds[number % len(kinds)] for number in range(options.other_kills)]
    last = int(_BLOWS_END * options.rows)
    return sorted(
        Fault(chance.randint(1, last), kind) for kind in [DRIVER] * options.driver_kills + struck
    )


class Disturbance:
    """One command, run to its end over many faults.

    Args:
        command: to run, and to run again whenever it was killed.
        output: of the command.
        nodes: the cluster that it uses; None where each run has a Ray of its own.
        seed: of the choice among several victims.
    """

    def __init__(
        self, command: Sequence[str], output: Path, nodes: Nodes | None, seed: int
    ) -> None:
        self._command = command
        self._output = output
        self._nodes = nodes
        self._chance = random.Random(seed)
        self._tally = Tally()

    def run(self, faults: Sequence[Fault]) -> Tally:
        """Run the command until it ends by itself.

        Raises:
            RuntimeError: it failed.
        """
        left = list(faults)
        while True:
            with self._driver() as driver:
                if not self._strike_all(driver, left):
                    continue
                while driver.poll() is None:
                    self._look()
                if driver.returncode:
                    raise RuntimeError(f"exit code {driver.returncode}: {self._log.read_text()}")
            self._tally.missed.update(fault.kind for fault in left)
            return self._tally

    @property
    def _log(self) -> Path:
        return self._output.with_suffix(f".{self._tally.starts}.log")

    @contextmanager
    def _driver(self) -> Iterator[subprocess.Popen[bytes]]:
        self._tally.starts += 1
        with self._log.open("wb") as file:
            driver = subprocess.Popen(self._command, stderr=file, stdout=file)
        try:
            yield driver
        finally:
            driver.kill()
            driver.wait()

    def _strike_all(self, driver: subprocess.Popen[bytes], left: list[Fault]) -> bool:
        """Let faults fall until the driver is dead; False if one of them killed it."""
        before = self._look()
        while left:
            num_rows = self._look()
            if driver.poll() is not None:
                return True
            fault = left[0]
            # What starts may fail as a whole, so others than the driver are struck at work.
            is_at_work = num_rows > before or fault.kind == DRIVER
            if num_rows < fault.num_rows or not is_at_work:
                continue
            left.pop(0)
            _say(f"{num_rows} rows, start {self._tally.starts}: {fault.kind}")
            if fault.kind == DRIVER:
                self._kill_driver(driver)
                return False
            has_struck = self._kill_node() if fault.kind == NODE else self._kill_one(driver, fault)
            (self._tally.kills if has_struck else self._tally.missed)[fault.kind] += 1
        return True

    def _look(self) -> int:
        """Read the output as anybody could; how many rows it holds."""
        time.sleep(_LOOK_S)
        if not any(self._output.glob("part-*.parquet")):
            return 0
        ids = pq.read_table(self._output, columns=["row_id"])["row_id"].to_pylist()
        self._tally.reads += 1
        self._tally.reads_with_doubled_rows += len(set(ids)) != len(ids)
        return len(ids)

    def _kill_one(self, driver: subprocess.Popen[bytes], fault: Fault) -> bool:
        deadline_s = time.monotonic() + _FIND_S
        while driver.poll() is None and time.monotonic() < deadline_s:
            found = find(os.getpid(), SIGNS[fault.kind])
            if found and kill(self._chance.choice(found)):
                return True
            self._look()
        return False

    def _kill_node(self) -> bool:
        assert self._nodes is not None
        self._nodes.lose_one(self._chance)
        return True

    def _kill_driver(self, driver: subprocess.Popen[bytes]) -> None:
        """Kill the driver alone; what it started must end by itself."""
        family = list(descendants(driver.pid))
        driver.kill()
        driver.wait()
        self._tally.kills[DRIVER] += 1
        deadline_s = time.monotonic() + _END_S
        while any(map(is_alive, family)) and time.monotonic() < deadline_s:
            time.sleep(_LOOK_S)
        self._tally.orphans += sum(kill(pid) for pid in family if is_alive(pid))


def read_rows(output: Path) -> list[dict[str, Any]]:
    """All rows of an output."""
    return pq.read_table(output).to_pylist()


def compare(calm: Sequence[Mapping[str, Any]], wild: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How the rows of a disturbed run differ from those of an undisturbed one."""
    wanted = {row["row_id"]: row for row in calm}
    counts = Counter(row["row_id"] for row in wild)
    changed = [
        row["row_id"]
        for row in wild
        if any(row.get(name) != wanted.get(row["row_id"], {}).get(name) for name in _COMPARED)
    ]
    for row_id in changed:
        _say(f"changed: {row_id}")
    return {
        "rows": len(wild),
        "lost": len(wanted.keys() - counts.keys()),
        "doubled": sum(count - 1 for count in counts.values()),
        "changed": len(changed),
        "errors": sum(row["status"] == "error" for row in wild),
        "most_attempts": max((row["attempts"] for row in wild), default=0),
    }


def is_well(found: Mapping[str, int], tally: Tally, faults: Sequence[Fault], num_rows: int) -> bool:
    """Whether every row is there once, unchanged; all faults on drivers fell, and most others."""
    bad = (found["lost"], found["doubled"], found["changed"], tally.reads_with_doubled_rows)
    return (
        found["rows"] == num_rows
        and not any(bad)
        and not tally.orphans
        and not tally.missed[DRIVER]
        and 2 * tally.kills.total() > len(faults)
    )


def _command(source: Path, options: argparse.Namespace) -> list[str]:
    return [
        *(sys.executable, "-m", "jobs.caption_videos", "--input", str(source)),
        *("--model", options.model, "--id-column", "id", "--frames", "4", "--temperature", "0"),
        *("--max-tokens", str(options.max_tokens), "--rows-per-part", "4"),
        # In float32 a text does not depend on which rows happen to be computed together.
        *("--max-part-age", "0.5", "--dtype", "float32", "--threads", "1", "--batch-size", "8"),
    ]


def _say(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m jobs.faults.chaos")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--rows", type=positive, default=400)
    add("--driver-kills", type=int, default=5)
    add("--other-kills", type=int, default=15, help="of all other kinds together")
    add("--nodes", type=int, default=2, help="of the cluster, beside its head; 0: no cluster")
    add("--model", default="demo")
    add("--max-tokens", type=positive, default=32, help="of a caption")
    add("--seed", type=int, default=0, help="of the moments and the victims")
    add("--folder", help="for input, outputs and logs, kept; default: a new one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
