"""`ray_head`: a cluster as `ray start --head` makes it, beside whatever else runs here.

Import the fixture into the test module that wants it:

    from tests.jobs.ray_head import RayHead, ray_head  # noqa: F401

It has a home directory, a temporary directory and ports of its own, and no token file at first.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.cluster.processes import descendants
from tests.conftest import ROOT

_START_TIMEOUT_S = 90.0


@dataclass(frozen=True)
class RayHead:
    """A running head; `run` types commands at it as a newcomer would."""

    jobs_url: str  # http://host:port, which `env` names as RAY_API_SERVER_ADDRESS
    env: dict[str, str]  # of a shell on the same machine; `ray` and `python` are ours

    @property
    def address(self) -> str:
        """host:port as `ray start` wrote it down, for RAY_ADDRESS."""
        return (Path(self.env["RAY_TMPDIR"]) / "ray" / "ray_current_cluster").read_text()

    def run(
        self, *command: str, cwd: Path, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; stdout and stderr come together in `stdout`."""
        return subprocess.run(
            command,
            check=False,
            cwd=cwd,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """Start a head with 4 CPUs and wait until its Jobs API takes jobs."""
    # Short, because Ray puts sockets deep below it and their paths end at 107 bytes.
    base = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, base, ignore_errors=True)
        gcs_port, jobs_port, agent_port, client_port = _free_ports(4)
        jobs_url = f"http://127.0.0.1:{jobs_port}"
        head = RayHead(jobs_url, _shell(base) | {"RAY_API_SERVER_ADDRESS": jobs_url})
        process = subprocess.Popen(
            [
                *("ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=4"),
                *(f"--port={gcs_port}", f"--dashboard-port={jobs_port}"),
                *(f"--dashboard-agent-listen-port={agent_port}", "--min-worker-port=0"),
                *(f"--ray-client-server-port={client_port}", "--max-worker-port=0"),
                f"--object-store-memory={256 << 20}",
            ],
            cwd=ROOT,  # where jobs run that are submitted without a working directory
            env=_shell(base),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        undo.callback(process.wait)
        undo.callback(_kill_all_of, base, process.pid)  # asked kindly, Ray takes half a minute
        _wait_for_agent(head, process)
        yield head


def _shell(base: Path) -> dict[str, str]:
    """The environment of a shell in which Ray was never configured."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    (base / "home").mkdir(exist_ok=True)
    return env | {
        "HOME": str(base / "home"),
        "RAY_TMPDIR": str(base),  # rather than --temp-dir, so that other commands look there too
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_for_agent(head: RayHead, process: subprocess.Popen[bytes]) -> None:
    """Submit nothing until it is taken; before, the Jobs API says 500 No available agent."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        command = ("ray", "job", "submit", "--no-wait", "--", "true")
        if (submit := head.run(*command, cwd=Path(head.env["HOME"]))).returncode == 0:
            return
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"`ray start --head` (exit code {process.poll()}): {submit.stdout}")
        time.sleep(0.5)


def _kill_all_of(base: Path, head_pid: int) -> None:
    """Kill the processes of this head, and no others.

    Those that it started are found below it, and those of its jobs by their environment; the agents
    of a head cannot be found so, because they write their name over it.
    """
    mark = f"RAY_TMPDIR={base}".encode()
    found = {head_pid, *descendants(head_pid)}
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is gone meanwhile, or somebody else's
            if mark in (directory / "environ").read_bytes().split(b"\0"):
                found.add(int(directory.name))
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
