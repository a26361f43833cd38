"""The program of `test_nodes`: a run without a model on a simulated cluster of three nodes.

    python -m tests.pipeline.stages.three_nodes ROWS ROWS_PER_S STORY

Each node has one rank, which answers so many rows a second. In the story `leave` a node announces
its end when a fifth of the rows is done, leaves, and another comes; in `stay` all nodes stay.
"""

import json
import random
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from jobs.faults.simulated_nodes import Nodes, simulated_nodes

_NOTICE_S = 8  # longer than an engine without a model needs to start


def row_ids(output: Path) -> list[str]:
    if not any(output.glob("part-*.parquet")):
        return []
    return pq.read_table(output, columns=["row_id"])["row_id"].to_pylist()


def leave(nodes: Nodes, output: Path, num_rows: int, ended: threading.Event) -> None:
    while len(row_ids(output)) < num_rows / 5:
        if ended.wait(0.2):
            return
    nodes.end_one(random.Random(0), _NOTICE_S)


def main(num_rows: int, rows_per_s: float, story: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="three-nodes-") as name,
        simulated_nodes(3) as nodes,
    ):
        assert nodes is not None
        # Ray reads how processes prove who they are when it is first imported.
        from jobs.bench.flow.paced import run_with
        from jobs.bench.pipeline import make_config, small_clip, write_input

        folder, output = Path(name), Path(name) / "output"
        clip = small_clip(num_frames=4, width_px=224, height_px=224)
        source = write_input(folder / "clips.parquet", clip, num_rows)
        config = replace(make_config(source, output, num_frames=4), num_groups=3, rows_per_part=8)
        watch = (
            (lambda ended: None)
            if story == "stay"
            else (lambda ended: leave(nodes, output, num_rows, ended))
        )
        report = run_with(config, rows_per_s, watch)
        found = report.as_json()
        ids = row_ids(output)
        generate = report.usage.costs.stages["generate"]
        told = {
            "rows": len(ids),
            "twice": sum(number - 1 for number in Counter(ids).values()),
            "statuses": dict(report.statuses),
            "mb_prompts": round(generate.num_bytes / 1e6, 2),
            "mb_crossed": round(generate.crossed_bytes / 1e6, 2),
            **{name: found[name] for name in ("group_failures", "groups_moved", "seconds")},
            **{
                name: found[name] for name in ("slower_stage", "rows_per_s", "mean_rows_at_engines")
            },
        }
        sys.stdout.write(f"{json.dumps(told)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
