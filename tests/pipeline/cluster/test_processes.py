"""What prepares rows gives way, with all its threads and the processes that it starts."""

import os
import pickle
import subprocess
import sys

from pipeline.preflight import open_input
from tests.pipeline.runs import small_config
from tests.tiny import tiny_checkpoint

_PREPARER = """
import os, pickle, subprocess, sys, threading
from pipeline.stages.batching import Batching
from pipeline.stages.ray_data import _Preparer
threading.Thread(target=threading.Event().wait, daemon=True).start()
checkpoint, row_schema, instructions = pickle.load(sys.stdin.buffer)
batching = Batching(num_rows=1, num_small_rows=1)
_Preparer(None, checkpoint, row_schema, instructions, open, 0, batching)
threads = {os.getpriority(os.PRIO_PROCESS, int(name)) for name in os.listdir("/proc/self/task")}
child = [sys.executable, "-c", "import os; print(os.nice(0))"]
print(threads, subprocess.check_output(child, text=True))
"""


def test_a_preparer_gives_way_with_its_threads_and_processes(tmp_path):
    tiny_checkpoint(tmp_path / "checkpoint")
    config = small_config(tmp_path, tmp_path / "checkpoint")
    given = (config.checkpoint, open_input(config).row_schema, config.instructions)
    command = [sys.executable, "-W", "error", "-c", _PREPARER]
    printed = subprocess.check_output(command, input=pickle.dumps(given))
    niceness = str(min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)).encode()
    assert printed.split() == [b"{%s}" % niceness, niceness]
