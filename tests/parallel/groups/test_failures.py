"""When failures end a group or the job, by a fake clock."""

from dataclasses import replace

import pytest

from parallel.groups.failures import Failures
from parallel.groups.spec import GroupSpec

HOUR_S, DAY_S = 3600.0, 86_400.0
SPEC = GroupSpec(engine_factory=lambda _: pytest.fail("nobody loads an engine here"))


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def failures(clock: Clock, num_groups: int = 1, rate: float = 4.0, **changes) -> Failures:
    return Failures(replace(SPEC, **changes), num_groups, rate, clock)


@pytest.mark.parametrize(
    ("num_groups", "allowed"),
    [(1, 16), (5, 16), (8, 24), (64, 192), (512, 1536)],
)
def test_failures_at_once_are_too_many_beyond_sixteen_or_three_a_group(num_groups, allowed):
    counted = failures(Clock(), num_groups)
    for number in range(allowed):
        counted.add(number % num_groups, "killed")
        assert counted.excess() is None
    counted.add(0, "the last straw")
    text = counted.excess()
    assert text is not None
    assert f"failed {allowed + 1} times, more than the allowed {allowed} at once and 4 a" in text
    assert "the last straw. What is committed is safe" in text


@pytest.mark.parametrize(("rate", "ends"), [(0.0, True), (3.9, True), (4.1, False)])
def test_failures_of_a_month_are_too_many_beyond_the_rate(rate, ends):
    clock = Clock()
    counted = failures(clock, num_groups=64, rate=rate)
    has_ended = False
    for number in range(30 * 4 * 64):
        clock.now_s += DAY_S / (4 * 64)
        counted.add(number % 64, "killed")
        has_ended = has_ended or counted.excess() is not None
    assert has_ended == ends


def test_a_quiet_month_does_not_save_up_failures():
    clock = Clock()
    counted = failures(clock)
    clock.now_s += 30 * DAY_S
    for _ in range(17):
        assert counted.excess() is None
        counted.add(0, "killed")
    assert counted.excess() is not None


@pytest.mark.parametrize(
    ("served_s", "is_repeated"), [(0.0, True), (599.0, True), (600.0, False), (HOUR_S, False)]
)
def test_only_failures_without_long_service_between_them_are_in_a_row(served_s, is_repeated):
    clock = Clock()
    counted = failures(clock, num_groups=2)
    for number in range(6):
        assert not counted.is_repeated(1)
        counted.note_start(1)
        clock.now_s += served_s if number == 3 else 10.0
        counted.add(1, "killed")
        counted.add(0, "of the other")
        clock.now_s += HOUR_S  # without service
        counted.note_start(0)
        clock.now_s += HOUR_S
    assert counted.is_repeated(1) == is_repeated
    assert not counted.is_repeated(0)


def test_a_group_that_is_set_apart_takes_its_failures_along_and_none_of_others():
    counted = failures(Clock(), num_groups=4)
    for _ in range(10):
        counted.add(0, "killed")
    for number in range(6):
        counted.add(3, f"death {number}")
    assert counted.set_group_apart(3) == (
        "death 5; group 3 is set apart after 6 failures in a row, and the others go on"
    )
    assert counted.set_apart == {3: counted.texts[-1]}
    for _ in range(6):
        assert counted.excess() is None
        counted.add(1, "killed")
    assert counted.excess() is None  # 16 are left
    counted.add(1, "killed")
    text = counted.excess()
    assert text is not None
    assert "failed 23 times" in text
    assert "Before that: death 5; group 3 is set apart" in text
