"""Kill what runs, at random moments, and see that no row is lost, doubled or changed.

    python -m jobs.chaos --rows 400 --driver-kills 5

The job captions generated clips, some of them broken, once undisturbed. Then it does so again into
another output, while kill -9 hits ranks of engines, workers that prepare rows, the client of the
engines and the driver, whose command is then typed again. A reader looks at the output meanwhile.
The last line is one JSON object; the exit code is 1 if anything differs.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.clips import write_clips

VICTIMS = {
    "rank": re.compile(rb"ray::(Rank|Member)"),
    "preparer": re.compile(rb"ray::.*_Preparer"),
    "client": re.compile(rb"ray::.*_Generator"),
}
_COMPARED = ("status", "caption", "error_code", "num_generated_tokens", "frame_times_s", "id")
_BROKEN_EVERY = 20  # rows
_END_WAIT_S = 60.0  # in which what belongs to a killed driver must be gone


@dataclass
class Tally:
    """What was done to a run, and what a reader saw of it."""

    kills: Counter[str] = field(default_factory=Counter)
    num_reads: int = 0
    num_doubled: int = 0  # reads in which some row stood twice
    num_starts: int = 0
    num_orphans: int = 0  # processes that had to be ended after their driver


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both, compare; 0 if they are equal."""
    options = _parser().parse_args(arguments)
    folder = Path(options.folder or tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    source = make_input(folder / "clips.parquet", options.rows)
    command = _command(source, options.model)
    calm, wild = folder / "calm", folder / "wild"
    started_s = time.monotonic()
    subprocess.run([*command, "--output", str(calm)], check=True, stderr=subprocess.DEVNULL)
    calm_s = time.monotonic() - started_s
    tally = disturb(
        [*command, "--output", str(wild)],
        wild,
        random.Random(options.seed),
        driver_kills=options.driver_kills,
        max_wait_s=options.max_wait or calm_s / 2,
    )
    found = compare(read_rows(calm), read_rows(wild))
    is_good = found["rows"] == options.rows and not any(
        (found["lost"], found["doubled"], found["changed"], tally.num_doubled)
    )
    print(
        json.dumps(
            {
                "chaos": {
                    **found,
                    "kills": dict(tally.kills),
                    "starts": tally.num_starts,
                    "reads_meanwhile": tally.num_reads,
                    "reads_with_doubled_rows": tally.num_doubled,
                    "orphans": tally.num_orphans,
                    "is_equal": is_good,
                }
            }
        )
    )
    if options.folder is None:
        shutil.rmtree(folder)
    return 0 if is_good else 1


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


def disturb(
    command: Sequence[str],
    output: Path,
    chance: random.Random,
    *,
    driver_kills: int,
    max_wait_s: float,
) -> Tally:
    """Run a command to its end, over `driver_kills` kills of it and others of its processes."""
    tally = Tally()
    while True:
        log = output.with_suffix(f".{tally.num_starts}.log")
        tally.num_starts += 1
        with log.open("wb") as file:
            driver = subprocess.Popen(command, stderr=file, stdout=file)
        is_last = tally.kills["driver"] >= driver_kills
        try:
            for victim in chance.sample(sorted(VICTIMS), 2 if is_last else len(VICTIMS)):
                _watch(driver, output, chance.uniform(0.2, 1.0) * max_wait_s / 3, tally)
                _kill_one(driver, victim, chance, tally)
            if not is_last:
                _watch(driver, output, chance.uniform(0.0, 1.0) * max_wait_s / 3, tally)
                if _kill_driver(driver, tally):
                    continue
            while driver.poll() is None:
                _watch(driver, output, 1.0, tally)
        finally:
            _kill_driver(driver, Tally())
        if driver.returncode != 0:
            raise RuntimeError(f"exit code {driver.returncode}: {log.read_text()[-2000:]}")
        if not is_last:
            raise RuntimeError("the run ended before it could be killed; use more rows")
        return tally


def _watch(driver: subprocess.Popen[bytes], output: Path, seconds: float, tally: Tally) -> None:
    """Read the output for some seconds that count from when rows begin to flow."""
    while driver.poll() is None and not _victims(driver.pid, "client"):  # groups are ready
        time.sleep(0.1)
    deadline_s = time.monotonic() + seconds
    while driver.poll() is None and time.monotonic() < deadline_s:
        if any(output.glob("part-*.parquet")):
            ids = pq.read_table(output, columns=["row_id"])["row_id"].to_pylist()
            tally.num_reads += 1
            tally.num_doubled += len(set(ids)) != len(ids)
        time.sleep(0.2)


def _kill_one(
    driver: subprocess.Popen[bytes], victim: str, chance: random.Random, tally: Tally
) -> None:
    found = _victims(driver.pid, victim)
    if found and driver.poll() is None:
        _kill(chance.choice(found))
        tally.kills[victim] += 1


def _kill_driver(driver: subprocess.Popen[bytes], tally: Tally) -> bool:
    """Kill the driver alone, wait until its Ray is gone; whether there was something to kill."""
    if driver.poll() is not None:
        return False
    family = list(descendants(driver.pid))
    driver.kill()
    driver.wait()
    tally.kills["driver"] += 1
    deadline_s = time.monotonic() + _END_WAIT_S
    while any(map(_is_alive, family)) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    for pid in filter(_is_alive, family):
        _kill(pid)
        tally.num_orphans += 1
    return True


def _victims(driver: int, kind: str) -> list[int]:
    return [pid for pid in descendants(driver) if VICTIMS[kind].match(_title(pid))]


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process started, and theirs."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)


def _title(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


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
    return {
        "rows": len(wild),
        "lost": len(wanted.keys() - counts.keys()),
        "doubled": sum(count - 1 for count in counts.values()),
        "changed": len(changed),
        "errors": sum(row["status"] == "error" for row in wild),
        "most_attempts": max((row["attempts"] for row in wild), default=0),
    }


def _command(source: Path, model: str) -> list[str]:
    return [
        *(sys.executable, "-m", "jobs.caption_videos", "--input", str(source), "--model", model),
        *("--id-column", "id", "--frames", "4", "--temperature", "0", "--max-tokens", "32"),
        *("--rows-per-part", "16", "--max-part-age", "2", "--dtype", "float32"),
        *("--threads", "1", "--batch-size", "8"),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m jobs.chaos")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--driver-kills", type=int, default=5)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument(
        "--max-wait",
        type=float,
        help="seconds to a driver's kill; default: half an undisturbed run",
    )
    parser.add_argument("--folder", help="for input, outputs and logs, kept; default: a new one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
