import math
from fractions import Fraction

import numpy as np
import pytest

from pipeline.sampling import FrameIndex, FrameSampling, choose_frames, index_frames, target_times


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"fps": 1.0}, "either num_frames or fps", id="both"),
        pytest.param({"num_frames": None}, "either num_frames or fps", id="neither"),
        pytest.param({"num_frames": 0}, "at least 1, got 0", id="no frames"),
        pytest.param({"num_frames": None, "fps": 0.0}, "got 0.0", id="zero fps"),
        pytest.param({"num_frames": None, "fps": -1.0}, "got -1.0", id="negative fps"),
        pytest.param({"num_frames": None, "fps": math.nan}, "got nan", id="fps is not a number"),
        pytest.param({"num_frames": None, "fps": math.inf}, "got inf", id="infinite fps"),
        pytest.param({"max_frames": 0}, "max_frames", id="no frames at most"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FrameSampling(**settings)


def test_a_number_of_frames_gives_the_mid_points_of_equal_segments():
    assert target_times(0.0, 8.0, FrameSampling(num_frames=4)).tolist() == [1.0, 3.0, 5.0, 7.0]
    assert target_times(2.0, 4.0, FrameSampling(num_frames=1)).tolist() == [3.0]


@pytest.mark.parametrize(
    ("span_s", "fps", "expected"),
    [
        pytest.param((0.0, 3.0), 1.0, [0.5, 1.5, 2.5], id="whole seconds"),
        pytest.param((1.0, 3.4), 1.0, [1.5, 2.5], id="less than half a segment is left over"),
        pytest.param((0.0, 2.6), 1.0, [0.5, 1.5, 2.5], id="more than half a segment is left over"),
        pytest.param((0.0, 0.2), 1.0, [0.1], id="a span shorter than a segment"),
        pytest.param((0.0, 0.0), 1.0, [0.0], id="a picture without duration"),
        pytest.param((0.0, 10.0), 3.0, [1.25, 3.75, 6.25, 8.75], id="over the maximum"),
        pytest.param((0.0, 9e15), 1e300, [1.125e15, 3.375e15, 5.625e15, 7.875e15], id="hostile"),
    ],
)
def test_a_rate_gives_mid_points_from_the_start_of_the_span(span_s, fps, expected):
    sampling = FrameSampling(num_frames=None, fps=fps, max_frames=4)
    assert target_times(span_s[0], span_s[1], sampling).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("rounded_to_ms", [False, True])
def test_the_rate_of_the_video_takes_every_frame_once(rounded_to_ms):
    times_s = np.arange(90) / 30
    times_s = times_s.round(3) if rounded_to_ms else times_s
    sampling = FrameSampling(num_frames=None, fps=30.0)
    assert choose_frames(times_s, 0.0, 3.0, sampling).tolist() == list(range(90))


def test_a_frame_on_display_at_many_target_times_is_taken_once():
    times_s = np.array([0.0, 0.1, 5.0])
    assert choose_frames(times_s, 0.0, 10.0, FrameSampling(num_frames=8)).tolist() == [1, 2]
    assert choose_frames(times_s, 0.0, 10.0, FrameSampling(num_frames=1000)).tolist() == [0, 1, 2]


def test_the_frame_on_display_when_a_span_lies_between_two_frames_is_taken():
    times_s = np.array([0.0, 1.0, 2.0])
    assert choose_frames(times_s, 1.2, 1.3, FrameSampling(num_frames=8)).tolist() == [1]


def indexed(packets, **changes) -> FrameIndex | None:
    """The index of (pts, duration, is_keyframe, is_hidden) packets of tenths of a second."""
    pts, durations, is_keyframe, is_hidden = np.array(packets, dtype=np.int64).T
    options = {"time_base": Fraction(1, 10), "stores_pts": True, **changes}
    return index_frames(pts, durations, is_keyframe == 1, is_hidden == 1, **options)


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


def test_a_jump_goes_to_the_last_keyframe_before_the_frame():
    packets = [(0, 1, 1, 0), (1, 1, 0, 0), (2, 1, 1, 0), (3, 1, 0, 0), (4, 1, 1, 0)]
    index = indexed(packets)
    assert index is not None
    assert [index.jump_to(pts) for pts in range(5)] == [None, None, 2, 2, 4]
    unordered = indexed(packets, stores_pts=False)
    assert unordered is not None
    assert unordered.jump_to(4) is None
