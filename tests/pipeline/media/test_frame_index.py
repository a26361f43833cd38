from fractions import Fraction

import numpy as np
import pytest

from pipeline.media.frame_index import (
    FrameIndex,
    PacketRun,
    Packets,
    index_frames,
    is_near,
    plan_runs,
)


def indexed(packets, **changes) -> FrameIndex | None:
    """Index packets (pts, duration, is_keyframe, is_hidden), with times in tenths of a second."""
    pts, durations, is_keyframe, is_hidden = np.array(packets, dtype=np.int64).T
    packets = Packets(
        pts=pts,
        moved=np.zeros_like(pts),
        durations=durations,
        positions=np.full(len(pts), -1),
        is_keyframe=is_keyframe == 1,
        is_hidden=is_hidden == 1,
    )
    return index_frames(packets, **{"time_base": Fraction(1, 10), "stores_pts": True, **changes})


def test_the_index_orders_packets_by_presentation_and_starts_at_zero():
    index = indexed([(7, 1, 1, 0), (10, 1, 0, 0), (8, 1, 0, 0), (9, 1, 0, 0), (11, 4, 0, 0)])
    assert index is not None
    assert index.times_s.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert index.end_s == pytest.approx(0.8)


def test_packets_before_the_first_keyframe_and_hidden_ones_do_not_count():
    index = indexed([(0, 1, 0, 0), (5, 1, 1, 0), (4, 1, 0, 0), (6, 1, 0, 1), (7, 1, 0, 0)])
    assert index is not None
    assert index.pts.tolist() == [5, 7]
    assert indexed([(0, 1, 1, 1)]) is None


def test_a_last_frame_without_duration_stays_as_long_as_the_others():
    index = indexed([(0, 0, 1, 0), (2, 0, 0, 0), (4, 0, 0, 0)])
    assert index is not None
    assert index.end_s == pytest.approx(0.6)
    lonely = indexed([(3, 0, 1, 0)])
    assert lonely is not None
    assert lonely.end_s == 0.0


def test_timestamps_at_the_ends_of_their_range_do_not_overflow_the_duration():
    index = indexed([(-(2**63) + 1, 0, 1, 0), (2**63 - 1, 2**62, 0, 0)])
    assert index is not None
    assert index.end_s == pytest.approx((2**64 + 2**62) / 10)


def stream(num_frames=100, gop=10, **changes) -> FrameIndex:
    """Index frames of one tick each, with a keyframe every `gop` frames and no B pictures."""
    index = indexed([(at, 1, at % gop == 0, 0) for at in range(num_frames)], **changes)
    assert index is not None
    return index


def test_a_run_begins_at_the_keyframe_before_a_frame_and_ends_behind_it():
    assert plan_runs(stream(), [55, 88]) == [PacketRun(50, 57), PacketRun(80, 90)]
    assert plan_runs(stream(), [50]) == [PacketRun(50, 52)]
    assert plan_runs(stream(), [99]) == [PacketRun(90, 100)]


def test_what_lies_near_is_read_through():
    assert plan_runs(stream(), [8, 12, 18]) == [PacketRun(0, 20)]
    assert plan_runs(stream(gop=4), [6]) == [PacketRun(0, 8)]
    assert plan_runs(stream(gop=100), [20, 90]) == [PacketRun(0, 92)]


def test_a_frame_displayed_before_its_keyframe_is_reached_from_the_one_before():
    # Decode order: I0 P3 B1 B2 I6 B4 B5 P9 B7 B8
    order = [0, 3, 1, 2, 6, 4, 5, 9, 7, 8]
    index = indexed([(at, 1, at in (0, 6), 0) for at in order])
    assert index is not None
    assert plan_runs(index, [5]) == [PacketRun(0, 8)]
    assert plan_runs(index, [6]) == [PacketRun(0, 6)]  # so near that reading through is cheaper


@pytest.mark.parametrize("changes", [{"stores_pts": False}, {"num_untimed": 1}])
def test_without_sure_times_there_is_no_plan(changes):
    assert plan_runs(stream(**changes), [55]) is None


def test_without_keyframes_there_is_no_plan():
    index = indexed([(at, 1, 0, 0) for at in range(10)])
    assert index is not None
    assert plan_runs(index, [5]) is None


def test_a_hidden_keyframe_begins_a_run_only_at_the_start():
    packets = [(at, 1, at % 10 == 0, at < 3 or at == 20) for at in range(40)]
    index = indexed(packets)
    assert index is not None
    assert plan_runs(index, [22, 35]) == [PacketRun(10, 24), PacketRun(30, 37)]
    assert plan_runs(index, [5]) == [PacketRun(0, 7)]


def test_frames_near_a_wanted_one_are_known():
    near = is_near(stream(), [20, 50])
    assert np.flatnonzero(near).tolist() == [19, 20, 21, 49, 50, 51]


def test_a_rate_that_varies_is_told_from_rounding():
    milliseconds = [(round(at * 1000 / 30), 33, 1, 0) for at in range(60)]
    steady = indexed(milliseconds, time_base=Fraction(1, 1000))
    assert steady is not None
    assert not steady.is_vfr
    assert steady.frame_ticks == 33
    skipped = indexed([*milliseconds[:20], *milliseconds[21:]], time_base=Fraction(1, 1000))
    assert skipped is not None
    assert skipped.is_vfr
