"""The drill judges rightly, and a short one goes well."""

import pytest

from jobs.faults.drill import drill, is_well, parse
from jobs.faults.faulty_engine import Fault, make_blows, random_blows

WELL = {"rows_in": 9, "rows_out": 9, "duplicates": 0, "text_changed": 0, "faults": 2, "deaths": 2}


@pytest.mark.parametrize(
    ("change", "well"),
    [
        pytest.param({}, True, id="all as it should be"),
        pytest.param({"rows_out": 8}, False, id="a lost row"),
        pytest.param({"rows_out": 10, "duplicates": 1}, False, id="a row twice"),
        pytest.param({"text_changed": 1}, False, id="another text"),
        pytest.param({"deaths": 1}, False, id="a fault that never fell"),
        pytest.param({"deaths": 3}, True, id="a death more"),
    ],
)
def test_only_a_run_without_loss_is_well(change, well):
    assert is_well({**WELL, **change}) == well


def test_a_group_that_is_hit_again_is_hit_in_its_next_generation():
    faults = make_blows([("kill", 3, 100), ("stop", 0, 40), ("kill", 2, 7)], num_ranks=2)
    assert faults == [
        Fault("kill", group=1, rank=1, generation=0, step=100),
        Fault("stop", group=0, rank=0, generation=0, step=40),
        Fault("kill", group=1, rank=0, generation=1, step=7),
    ]


def test_random_blows_kill_and_stop_in_every_group_and_can_be_repeated():
    where = {"num_groups": 2, "num_ranks": 4, "last_step": 50}
    faults = random_blows(6, seed=3, **where)
    assert faults == random_blows(6, seed=3, **where)
    assert {(fault.kind, fault.group) for fault in faults} == {("kill", 0), ("stop", 1)}
    assert [fault.generation for fault in faults] == [0, 0, 1, 1, 2, 2]
    assert all(1 <= fault.step <= 50 for fault in faults)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--kill-rank", "1"], "needs an --at-step", id="no step"),
        pytest.param(["--kill-rank", "4", "--at-step", "1"], "rank 4 does not", id="no such rank"),
    ],
)
def test_blows_that_cannot_be_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        drill(parse(arguments), tmp_path)


def test_one_rank_a_group_is_no_drill(capsys):
    with pytest.raises(SystemExit):
        parse(["--expert-parallel", "1"])
    assert "at least 2 ranks" in capsys.readouterr().err


@pytest.mark.ray
def test_a_killed_rank_changes_no_caption(ray_local, tmp_path):
    arguments = "--rows 12 --batch-size 4 --max-tokens 12 --kill-rank 1 --at-step 5".split()
    result = drill(parse(arguments), tmp_path)
    assert is_well(result)
    assert (result["rows_out"], result["deaths"]) == (12, 1)
