"""What prepares rows gives way, with all its threads and the processes that it starts."""

import os
import pickle
import subprocess
import sys

from pipeline.cluster.deployment import choose_deployment
from pipeline.preflight import open_input
from pipeline.stages.sizing import choose_sizing
from pipeline.stages.workers import StageSpec
from tests.pipeline.runs import small_config
from tests.tiny import tiny_checkpoint

_PREPARER = """
import os, pickle, subprocess, sys, threading
from pipeline.stages.ray_data import _Preparer
from pipeline.stages.workers import Workers
threading.Thread(target=threading.Event().wait, daemon=True).start()
_Preparer(pickle.load(sys.stdin.buffer), None, Workers())
threads = {os.getpriority(os.PRIO_PROCESS, int(name)) for name in os.listdir("/proc/self/task")}
child = [sys.executable, "-c", "import os; print(os.nice(0))"]
print(threads, subprocess.check_output(child, text=True))
"""


def refuse(media: object) -> bytes:
    raise AssertionError(media)


def test_a_preparer_gives_way_with_its_threads_and_processes(tmp_path):
    tiny_checkpoint(tmp_path / "checkpoint")
    config = small_config(tmp_path, tmp_path / "checkpoint")
    source = open_input(config)
    deployment = choose_deployment(config, [], 16)
    given = StageSpec(
        filesystem=source.filesystem,
        row_schema=source.row_schema,
        config=config,
        open_media=refuse,
        sizing=choose_sizing(config, deployment, num_rows=6, num_cpus=1, store_bytes=1 << 30),
    )
    command = [sys.executable, "-W", "error", "-c", _PREPARER]
    printed = subprocess.check_output(command, input=pickle.dumps(given))
    niceness = str(min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)).encode()
    assert printed.split() == [b"{%s}" % niceness, niceness]
