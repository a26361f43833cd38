"""Measure how long a run of three rows takes from typing to exit, beside Ray's own start and end.

The lines that a run writes say when each part begins. Ray alone is measured before and after the
run, because the speed of a shared machine varies.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from jobs.cli.ray_cluster import ROOT
from jobs.demo.clips import write_clips

T = TypeVar("T")
_NUM_ROWS = 3
_RAY_ALONE = "import logging, ray; ray.init(address='local', logging_level=logging.ERROR); " + (
    "ray.shutdown()"
)
# How the line begins that ends each part of a run, in their order.
_PARTS = {
    "imports_and_checks": f"{_NUM_ROWS} of {_NUM_ROWS} rows to do",
    "ray_start": "waiting for an engine",
    "groups_ready": "waiting for the first row",
    "first_row": "the first row came",
    "last_row": f"{_NUM_ROWS}/{_NUM_ROWS} rows",
    "shutdown": "",  # of the whole output
}


def measure_start(folder: Path) -> dict[str, object]:
    """Measure seconds of the whole, of Ray alone, of each part, and of processors."""
    source = write_clips(folder / "three.parquet", _NUM_ROWS, seed=0)
    job = [sys.executable, "-m", "jobs.caption_videos", "--model", "demo", "--device", "cpu"]
    job += ["--input", str(source), "--output", str(folder / "captions")]
    before_s = _ray_alone_s()
    (seconds, where), cpu_s = _with_cpu_s(lambda: _timed_by_lines(job))
    after_s, ray_cpu_s = _with_cpu_s(_ray_alone_s)
    ray_s = (before_s + after_s) / 2
    return {
        "rows": _NUM_ROWS,
        "seconds": round(seconds, 1),
        "ray_s": round(ray_s, 1),
        "of_ray": round(seconds / ray_s, 2),
        "first_line": where.pop("first_line"),
        "where": where,
        "cpu_s": round(cpu_s, 1),  # of the driver and what it waited for
        "ray_cpu_s": round(ray_cpu_s, 1),
    }


def _ray_alone_s() -> float:
    """Return the seconds of `ray.init()` and `ray.shutdown()` in a fresh process."""
    started_s = time.monotonic()
    subprocess.run([sys.executable, "-c", _RAY_ALONE], check=True, env=_environment())
    return time.monotonic() - started_s


def _timed_by_lines(job: list[str]) -> tuple[float, dict[str, float]]:
    """Run a job; return its seconds, and those of its first line and of each part."""
    started_s = time.monotonic()
    with subprocess.Popen(
        job,
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [(time.monotonic() - started_s, line) for line in process.stdout]
    seconds = time.monotonic() - started_s
    if process.returncode:
        text = "".join(line for _, line in lines)
        raise RuntimeError(f"the job ended with {process.returncode}: {text}")
    return seconds, {"first_line": round(lines[0][0], 1), **parts_of(lines, seconds)}


def parts_of(lines: list[tuple[float, str]], seconds: float) -> Mapping[str, float]:
    """Return the seconds of each part of a run, from its lines and when they came."""
    parts, latest = {}, 0.0
    for part, begin in _PARTS.items():
        times = [at for at, line in lines if begin and line.startswith(begin)]
        end = times[0] if times else seconds
        parts[part] = round(end - latest, 1)
        latest = end
    return parts


def _environment() -> dict[str, str]:
    """Make Ray private, silent and without tokens, in all measured processes alike."""
    own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, **own, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def _with_cpu_s(work: Callable[[], T]) -> tuple[T, float]:
    """Return what some work returns, and the processor seconds of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
