"""A run without a model on a simulated cluster of three nodes, counted and disturbed."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def run_on_three_nodes(num_rows: int, rows_per_s: float, story: str) -> dict[str, Any]:
    """Run in another process, because this one may have a private Ray, not a simulated cluster."""
    command = ["-m", "tests.pipeline.stages.three_nodes", str(num_rows), str(rows_per_s), story]
    program = subprocess.run(
        [sys.executable, *command],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert program.returncode == 0, program.stderr
    # Ray may have a last word of its own.
    (line,) = (line for line in program.stdout.splitlines() if line.startswith('{"rows"'))
    return json.loads(line)


# `python -m tests.pipeline.stages.three_nodes` also has two other stories, which take minutes:
# "stay-streams", where up to half of the bytes cross, since Ray spreads the clients of all streams
# over the nodes and not those of each stream alone; and "leave", with one stream.
def test_prompts_stay_on_the_node_that_prepared_them():
    found = run_on_three_nodes(600, 6, "stay")

    assert found["statuses"] == {"ok": 600}
    assert found["twice"] == 0
    assert found["mb_prompts"] > 50
    # Until each node has a worker that prepares rows, nodes without one run dry. By chance two
    # thirds would cross.
    assert found["mb_crossed"] < found["mb_prompts"] / 3


def test_a_node_that_ends_and_one_that_comes_cost_no_row_and_are_no_failure():
    found = run_on_three_nodes(300, 3, "leave-streams")

    assert found["statuses"] == {"ok": 300}
    assert (found["rows"], found["twice"]) == (300, 0)
    assert found["groups_moved"] == 1
    assert found["group_failures"] == []
