"""What is known of a run while it goes: rates, time left, and where the time of ranks goes."""

import subprocess
import sys
import threading
import time

import pyarrow as pa
import pytest

from pipeline.monitor import metrics, progress
from pipeline.monitor.poll import polling
from pipeline.monitor.progress import Lines, duration_text, rest_text
from pipeline.monitor.report import OutputCounts, Report, Usage
from pipeline.monitor.snapshot import RunMonitor, video_seconds
from pipeline.schema import InputColumns


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def rows(num_ok, num_missing=0, duration_s=10.0, num_tokens=7):
    ok = {"status": "ok", "error_code": None, "num_generated_tokens": num_tokens}
    missing = {"status": "error", "error_code": "media_missing", "num_generated_tokens": None}
    return pa.Table.from_pylist(
        [ok | {"media_duration_s": duration_s}] * num_ok
        + [missing | {"media_duration_s": None}] * num_missing,
        pa.schema(
            [
                ("status", pa.string()),
                ("error_code", pa.string()),
                ("num_generated_tokens", pa.int32()),
                ("media_duration_s", pa.float64()),
            ]
        ),
    )


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def monitor(clock):
    return RunMonitor(num_rows=100, num_done=20, columns=InputColumns(), clock=clock)


def stats(ready_s, stepping_s, needed_s, own_wait_s=0.0):
    return {
        "ready_s": ready_s,
        "stepping_s": stepping_s,
        "needed_s": needed_s,
        "own_wait_s": own_wait_s,
    }


def test_rates_and_time_left_in_rows_and_seconds_of_video(monitor, clock):
    clock.now += 10
    monitor.add(rows(18, num_missing=2))
    snapshot = monitor.snapshot()

    assert (snapshot.rows_done, snapshot.rows_left) == (40, 60)
    assert snapshot.rows_per_s == pytest.approx(2.0)
    assert snapshot.video_seconds_per_s == pytest.approx(18.0)
    assert snapshot.tokens_per_s == pytest.approx(12.6)
    assert snapshot.eta_s == pytest.approx(30.0)
    assert snapshot.video_seconds_left == pytest.approx(60 * 180 / 20)
    assert snapshot.error_codes == {"media_missing": 2}
    assert snapshot.engine_time_used is None


def test_rates_are_those_of_the_last_minutes(monitor, clock):
    monitor.add(rows(10))
    for _ in range(10):
        clock.now += 100
        monitor.snapshot()
    clock.now += 100
    monitor.add(rows(4))

    assert monitor.snapshot().rows_per_s == pytest.approx(4 / 300)


def test_the_time_of_a_rank_is_what_it_waited_for_and_what_it_computed(monitor, clock):
    clock.now += 10
    monitor.note_ranks({0: [stats(10, 6, 3, own_wait_s=1)], 1: [stats(10, 10, 9)]}, written_s=0.0)
    snapshot = monitor.snapshot()

    first, second = snapshot.ranks
    assert (first.group, first.rank) == (0, 0)
    assert (first.data, first.peers, first.writer) == pytest.approx((0.4, 0.1, 0.0))
    assert (second.data, second.peers, second.writer) == pytest.approx((0.0, 0.0, 0.0))
    assert snapshot.engine_time_used == pytest.approx(12 / 20)


def test_how_idle_ranks_are_is_that_of_the_last_readings(monitor):
    assert monitor.snapshot().idle_share is None
    monitor.note_ranks({0: [stats(0, 0, 0)]}, 0.0)  # loaded this moment
    assert monitor.snapshot().idle_share == 1.0
    monitor.note_ranks({0: [stats(10, 2, 2)]}, 0.0)
    assert monitor.snapshot().idle_share == pytest.approx(0.8)
    monitor.note_ranks({0: [stats(12, 4, 4)], 1: [stats(4, 2, 2)]}, 0.0)
    assert monitor.snapshot().idle_share == pytest.approx((0.0 + 0.5) / 2)
    monitor.note_ranks({1: [stats(6, 4, 4)]}, 0.0)  # the first group has died
    assert monitor.snapshot().idle_share == pytest.approx((1.0 + 0.0) / 2)


def test_idle_time_while_the_driver_writes_is_the_writers(monitor, clock):
    clock.now += 10
    monitor.note_ranks({0: [stats(10, 10, 10)]}, written_s=2.0)
    clock.now += 10
    monitor.note_ranks(
        {0: [stats(20, 16, 16)]}, written_s=7.0
    )  # writing half of the time, idle 4 s

    (rank,) = monitor.snapshot().ranks
    assert (rank.data, rank.writer) == pytest.approx((2 / 20, 2 / 20))


def test_a_reading_that_comes_twice_counts_once(monitor, clock):
    clock.now += 10
    for _ in range(3):
        monitor.note_ranks({0: [stats(10, 5, 5)]}, written_s=0.0)

    assert monitor.snapshot().ranks[0].data == pytest.approx(0.5)


def test_a_rank_that_was_started_anew_goes_on_counting(monitor, clock):
    clock.now += 10
    monitor.note_ranks({0: [stats(10, 10, 8)]}, written_s=0.0)
    clock.now += 10
    monitor.note_ranks({0: [stats(5, 0, 0)]}, written_s=0.0)

    snapshot = monitor.snapshot()
    assert snapshot.ranks[0].data == pytest.approx(5 / 15)
    assert snapshot.engine_time_used == pytest.approx(8 / 15)


def test_an_engine_that_tells_no_pace_leaves_the_first_number_open(monitor):
    monitor.note_ranks({0: [{"ready_s": 4.0, "stepping_s": 1.0}]}, written_s=0.0)
    monitor.note_ranks({1: [{"left": 3.0}]}, written_s=0.0)

    snapshot = monitor.snapshot()
    assert snapshot.engine_time_used is None
    assert len(snapshot.ranks) == 1


def test_spans_count_in_place_of_whole_videos():
    table = rows(3, num_missing=1)
    table = table.append_column("from", pa.array([None, 2.0, 8.0, None], pa.float64()))
    table = table.append_column("to", pa.array([None, 4.0, 99.0, None], pa.float64()))

    assert video_seconds(table, InputColumns()) == 30.0
    columns = InputColumns(start_s="from", end_s="to")
    assert video_seconds(table, columns) == 10 + 2 + 2
    exact = table["from"].cast(pa.decimal128(10, 3))
    until = pa.array([None, 4_000, 99_000, None], pa.duration("ms"))
    table = table.set_column(table.column_names.index("from"), "from", exact)
    table = table.set_column(table.column_names.index("to"), "to", until)
    assert video_seconds(table, columns) == 10 + 2 + 2


def test_a_line_says_rows_time_left_and_errors_first(monitor, clock, capsys):
    clock.now += 10
    monitor.add(rows(18, num_missing=2))
    monitor.note_ranks({0: [stats(10, 6, 3, own_wait_s=1), stats(10, 8, 6)]}, written_s=0.0)
    display = Lines()

    display.show(monitor.snapshot())
    assert capsys.readouterr().err == ""  # the last line is not old enough
    display.close(monitor.snapshot())

    assert capsys.readouterr().err == (
        "40/100 rows, 30 s left for 9 min of video, 2 errors (2 media_missing); 2 rows/s, "
        "18 s of video/s, 12.6 tokens/s; engine busy 45%; waits: data 30%, peers 5%, writer 0%, "
        "most 50% by group 0 rank 0\n"
    )


def test_a_run_of_which_nothing_is_known_yet_has_a_line_too(monitor):
    assert rest_text(monitor.snapshot()) == "no row yet; 0 rows/s, 0 tokens/s"


def test_a_line_of_pictures_has_no_seconds_of_video(monitor, clock):
    clock.now += 10
    monitor.add(rows(0, num_missing=10))

    assert rest_text(monitor.snapshot()).startswith("70 s left, 10 errors (10 media_missing); 1 ")
    assert "video" not in rest_text(monitor.snapshot())


def test_on_a_terminal_a_bar_is_drawn_again(monitor, clock, monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    display = progress.open_display()
    for _ in range(2):
        clock.now += 10
        monitor.add(rows(10))
        display.show(monitor.snapshot())
    display.close(monitor.snapshot())

    drawn = capsys.readouterr().err
    assert isinstance(display, progress.Bar)
    assert "40/100 rows, 60 s left for" in drawn.rpartition("\r")[2]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (720, "12 min"), (11_100, "3 h 05 min"), (187_200, "2 d 4 h")],
)
def test_durations_are_for_people(seconds, text):
    assert duration_text(seconds) == text


class FakeMetric:
    made: dict

    def __init__(self, name, description, tag_keys):
        assert description
        self.tag_keys = set(tag_keys)
        self.values = {}
        FakeMetric.made[name] = self

    def set_default_tags(self, tags):
        assert tags == {"output": "out"}

    def inc(self, value, tags):
        assert value > 0
        assert {"output", *tags} == self.tag_keys
        key = tuple(tags.values())
        self.values[key] = self.values.get(key, 0) + value

    def set(self, value, tags):
        assert {"output", *tags} == self.tag_keys
        self.values[tuple(tags.values())] = value


def test_metrics_follow_the_snapshots(monitor, clock, monkeypatch):
    FakeMetric.made = {}
    monkeypatch.setattr(metrics, "Counter", FakeMetric)
    monkeypatch.setattr(metrics, "Gauge", FakeMetric)
    shown = metrics.Metrics("out")
    for _ in range(2):
        clock.now += 5
        monitor.add(rows(9, num_missing=1))
        past_s = clock.now - 100
        monitor.note_ranks({0: [stats(past_s, 0.6 * past_s, 0.3 * past_s)]}, written_s=0.0)
        shown.show(monitor.snapshot())
    shown.show(monitor.snapshot())  # nothing is counted twice

    made = {
        name.removeprefix("moonsweep_"): metric.values for name, metric in FakeMetric.made.items()
    }
    assert made["rows"] == {("ok", ""): 18, ("error", "media_missing"): 2}
    assert made["generated_tokens"] == {(): 18 * 7}
    assert made["video_seconds"] == {(): 180}
    assert made["rows_left"] == {(): 60}
    assert made["eta_seconds"][()] == pytest.approx(30)
    assert made["engine_time_used"][()] == pytest.approx(0.3)
    assert made["rank_wait_share"]["0", "0", "data"] == pytest.approx(0.4)
    assert FakeMetric.made.keys() == {*metrics.COUNTERS, *metrics.GAUGES}


def test_the_report_begins_with_the_engines_time(monitor, clock):
    clock.now += 10
    monitor.add(rows(20))
    monitor.note_ranks({0: [stats(10, 6, 3)]}, written_s=0.0)
    report = Report(
        rows_in=100,
        rows_done_before=20,
        rows_written=20,
        statuses={"ok": 20},
        error_codes={},
        output=OutputCounts({"ok": 40}, {}),
        num_prompt_tokens=1,
        num_generated_tokens=140,
        num_bytes_written=1,
        usage=Usage(seconds=10.0, snapshot=monitor.snapshot()),
    )

    stored = report.as_json()
    assert next(iter(stored.items())) == ("engine_time_used", 0.3)
    assert stored["video_seconds_per_s"] == pytest.approx(20.0)
    assert stored["rank_waits"] == [
        {"group": 0, "rank": 0, "data": 0.4, "peers": 0.0, "writer": 0.0}
    ]
    assert "engine time used 30%; 10.0 s: 2 rows/s, 20 video-s/s, 14 generated" in str(report)


def test_the_largest_memory_is_that_of_any_rank_though_it_has_died(monitor):
    monitor.note_ranks({0: [stats(1, 1, 1) | {"peak_bytes": 5e9}], 1: [stats(1, 1, 1)]}, 0.0)
    monitor.note_ranks(
        {0: [stats(1, 1, 1) | {"peak_bytes": 2e9}] * 2, 1: [{"peak_bytes": 4e9}]}, 0.0
    )
    assert monitor.rank_peak_bytes == 5_000_000_000


def test_a_run_is_polled_until_it_ends_though_its_groups_are_gone(monitor):
    seen = threading.Event()
    closed = []
    num_polls = 0

    def rank_stats(fresh):
        nonlocal num_polls
        num_polls += 1
        if num_polls == 1:
            return None  # the supervisor is gone
        return {0: (stats(4, 1, 1) if fresh else stats(2, 1, 1),)}

    class Reporter:
        def show(self, snapshot):
            if snapshot.ranks:
                seen.set()

        def close(self, snapshot):
            closed.append(snapshot)

    num_threads = threading.active_count()
    with polling(monitor, rank_stats, lambda: 0.0, [Reporter()], every_s=0.001):
        assert seen.wait(10)
    assert [snapshot.ranks[0].data for snapshot in closed] == [0.75]  # of the fresh numbers
    with pytest.raises(KeyError), polling(monitor, rank_stats, lambda: 0.0, [Reporter()]):
        raise KeyError
    assert len(closed) == 2
    while threading.active_count() > num_threads:
        time.sleep(0.001)


def test_seconds_of_writing_reach_the_monitor(monitor, clock):
    clock.now += 10
    with polling(monitor, lambda _fresh: {0: [stats(10, 6, 6)]}, lambda: 5.0, []):
        pass
    (rank,) = monitor.snapshot().ranks
    assert (rank.data, rank.writer) == pytest.approx((0.2, 0.2))


def test_polling_does_not_import_ray():
    script = (
        "import sys, pipeline.monitor.poll, pipeline.monitor.report; print('ray' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert found.stdout.split() == [b"False"]
