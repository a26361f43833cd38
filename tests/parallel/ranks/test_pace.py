"""When the ranks of a group begin prompts."""

import pytest

from parallel.ranks.pace import MAX_HELD_STEPS, Pace


def after(*steps: tuple[int, ...], is_idle: bool = False) -> int:
    """Return the limit after steps in which ranks had so many waiting tokens."""
    pace = Pace()
    for waiting in steps:
        pace.follow(waiting, is_idle=is_idle)
    return pace.limit


@pytest.mark.parametrize(
    ("waiting", "limit"),
    [
        pytest.param((0, 0), 0, id="nobody has prompts"),
        pytest.param((100, 0), 0, id="one has none, so the other waits"),
        pytest.param((100, 300), 100, id="all have, and begin as much as the one with fewest"),
        pytest.param((90, 70, 0, 80), 0, id="one of four has none"),
    ],
)
def test_prompts_begin_when_every_rank_has_some(waiting, limit):
    assert after(waiting) == limit


def test_prompts_are_not_held_for_ever():
    waiting = (100, 0, 300)
    assert after(*[waiting] * MAX_HELD_STEPS) == 0
    assert after(*[waiting] * (MAX_HELD_STEPS + 1)) == 100
    assert after(*[waiting] * (MAX_HELD_STEPS + 2)) == 0  # the next ones wait as long


def test_nothing_waits_for_a_group_that_has_nothing_else_to_do():
    assert after((0, 0, 50), is_idle=True) == 50


def test_the_count_of_held_steps_begins_anew_once_all_have_prompts():
    held = [(100, 0)] * MAX_HELD_STEPS
    assert after(*held, (100, 20)) == 20
    assert after(*held, (100, 20), (80, 0)) == 0
    assert after(*held, (0, 0), (80, 0)) == 0
