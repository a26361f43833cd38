"""A group over several nodes loses one of them."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.ray
@pytest.mark.slow
def test_a_group_spreads_over_nodes_survives_the_loss_of_one_and_leaves_nothing():
    """Run in another process, because this one may have a private Ray, not a simulated cluster."""
    program = subprocess.run(
        [sys.executable, "-m", "tests.parallel.lost_node"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert program.returncode == 0, program.stderr
    # Ray may have a last word of its own.
    (line,) = (line for line in program.stdout.splitlines() if line.startswith('{"before"'))
    story = json.loads(line)
    assert len(set(story["before"])) == 2
    assert story["lost"] in story["before"]
    assert story["lost"] not in story["after"]
    assert len(set(story["after"])) == 2
    assert story["answers"] == 12
    assert len(story["failures"]) >= 1
    assert story["placement_groups"] == 0
    assert story["free_cpus"] == 2
