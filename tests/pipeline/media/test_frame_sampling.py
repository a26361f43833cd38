import math

import numpy as np
import pytest

from pipeline.media.frame_sampling import FrameSampling, choose_frames, target_times


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"at_s": (1.0,)}, "either num_frames or fps or at_s", id="seconds too"),
        pytest.param({"num_frames": None, "at_s": ()}, "at_s is empty", id="no seconds"),
        pytest.param({"num_frames": None, "at_s": (-1.0,)}, "from 0 on", id="negative seconds"),
        pytest.param({"num_frames": None, "at_s": (math.nan,)}, "from 0 on", id="no number"),
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


def test_seconds_count_from_the_start_of_the_span_and_stay_in_it():
    sampling = FrameSampling(num_frames=None, at_s=(2.0, 0.5, 2.0, 9.0))
    assert target_times(0.0, 8.0, sampling).tolist() == [0.5, 2.0]
    assert target_times(1.0, 2.0, sampling).tolist() == [1.5]
    assert target_times(1.0, 1.2, sampling).tolist() == []


def test_keyframes_stand_for_the_frames_that_follow_them():
    times_s = np.arange(10.0)
    is_keyframe = np.isin(np.arange(10), [0, 4, 8])
    sampling = FrameSampling(num_frames=5, keyframes_only=True)
    assert choose_frames(times_s, 0.0, 10.0, sampling, is_keyframe).tolist() == [0, 4, 8]
    assert choose_frames(times_s, 5.0, 7.0, sampling, is_keyframe).tolist() == [4]
    none = np.zeros(10, np.bool_)
    assert choose_frames(times_s, 0.0, 10.0, sampling, none).tolist() == [1, 3, 5, 7, 9]


def chosen(times_s, start_s, end_s, sampling):
    every = np.ones(len(times_s), np.bool_)
    return choose_frames(times_s, start_s, end_s, sampling, every).tolist()


@pytest.mark.parametrize("rounded_to_ms", [False, True])
def test_the_rate_of_the_video_takes_every_frame_once(rounded_to_ms):
    times_s = np.arange(90) / 30
    times_s = times_s.round(3) if rounded_to_ms else times_s
    sampling = FrameSampling(num_frames=None, fps=30.0)
    assert chosen(times_s, 0.0, 3.0, sampling) == list(range(90))


def test_a_frame_on_display_at_many_target_times_is_taken_once():
    times_s = np.array([0.0, 0.1, 5.0])
    assert chosen(times_s, 0.0, 10.0, FrameSampling(num_frames=8)) == [1, 2]
    assert chosen(times_s, 0.0, 10.0, FrameSampling(num_frames=1000)) == [0, 1, 2]


def test_the_frame_on_display_when_a_span_lies_between_two_frames_is_taken():
    times_s = np.array([0.0, 1.0, 2.0])
    assert chosen(times_s, 1.2, 1.3, FrameSampling(num_frames=8)) == [1]
