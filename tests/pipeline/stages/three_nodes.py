"""The program of `test_nodes`: a run without a model on a simulated cluster of three nodes.

    python -m tests.pipeline.stages.three_nodes ROWS ROWS_PER_S STORY

Each node has one rank, which answers so many rows a second. In the story `leave` a node announces
its end when a fifth of the rows is done, leaves, and another comes; in `stay` all nodes stay.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from jobs.faults.simulated_nodes import Nodes, simulated_nodes

_NOTICE_S = 8  # longer than an engine without a model needs to start
_INPUT, _OUTPUT = "clips.parquet", "output"


def row_ids(output: Path) -> list[str]:
    if not any(output.glob("part-*.parquet")):
        return []
    return pq.read_table(output, columns=["row_id"])["row_id"].to_pylist()


def leave(run: subprocess.Popen[bytes], nodes: Nodes, output: Path, num_rows: int) -> None:
    while run.poll() is None:
        if len(row_ids(output)) >= num_rows / 5:
            nodes.end_one(random.Random(0), _NOTICE_S)
            return
        time.sleep(0.2)


def main(num_rows: int, rows_per_s: float, story: str) -> None:
    """Lead the cluster, while another process has the run: Ray adds nodes in a main thread only."""
    with tempfile.TemporaryDirectory(prefix="three-nodes-") as name, simulated_nodes(3) as nodes:
        assert nodes is not None
        command = ["-m", "tests.pipeline.stages.three_nodes", name, str(num_rows), str(rows_per_s)]
        with subprocess.Popen([sys.executable, *command, "run"], stdout=subprocess.PIPE) as run:
            if story == "leave":
                leave(run, nodes, Path(name) / _OUTPUT, num_rows)
            told, _ = run.communicate()
        assert run.returncode == 0
        ids = row_ids(Path(name) / _OUTPUT)
        counts = {"rows": len(ids), "twice": sum(n - 1 for n in Counter(ids).values())}
        sys.stdout.write(f"{json.dumps(counts | json.loads(told.splitlines()[-1]))}\n")
        sys.stdout.flush()


def run_rows(folder: Path, num_rows: int, rows_per_s: float) -> None:
    # Not at the top: Ray reads how processes prove who they are when it is first imported.
    from jobs.bench.flow.paced import run_with
    from jobs.bench.pipeline import make_config, small_clip, write_input

    clip = small_clip(num_frames=4, width_px=224, height_px=224)
    source = write_input(folder / _INPUT, clip, num_rows)
    config = make_config(source, folder / _OUTPUT, num_frames=4)
    report = run_with(replace(config, num_groups=3, rows_per_part=8), rows_per_s)
    found = report.as_json()
    generate = report.usage.costs.stages["generate"]
    told = {
        "statuses": dict(report.statuses),
        "mb_prompts": round(generate.num_bytes / 1e6, 2),
        "mb_crossed": round(generate.crossed_bytes / 1e6, 2),
        **{name: found[name] for name in ("group_failures", "groups_moved", "rows_per_s")},
    }
    sys.stdout.write(f"{json.dumps(told)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[-1] == "run":
        run_rows(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
    else:
        main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
