"""What a run says about itself."""

from dataclasses import replace

import pytest

from model.engine.fit.capacity import Capacity
from pipeline.monitor.report import OutputCounts, Report, Usage
from pipeline.monitor.stage_costs import Cost, Costs
from pipeline.output.caption_counts import CaptionCounts, CaptionSummary


def report(*, prepare_s=1.0, generate_s=1.0, **changes):
    costs = Costs()
    prepared = Cost("prepare", prepare_s, num_bytes=2_000_000, peak_bytes=50_000_000)
    costs.add([prepared, Cost("generate", generate_s / 2, num_rows=2)])
    usage = Usage(10.0, costs, num_preparers=2, max_rows=8)
    fields = {
        "rows_in": 6,
        "rows_done_before": 0,
        "rows_written": 6,
        "statuses": {"ok": 5, "error": 1},
        "error_codes": {"no_frames": 1},
        "num_prompt_tokens": 60,
        "num_generated_tokens": 30,
        "num_bytes_written": 1000,
        "output": OutputCounts({"ok": 5, "error": 1}, {"no_frames": 1}),
    }
    return Report(usage=usage, **{**fields, **changes})


def test_rows_in_are_done_and_failed_by_code_with_those_of_earlier_runs():
    found = report(
        rows_done_before=4,
        rows_written=2,
        statuses={"ok": 2},
        error_codes={},
        output=OutputCounts(
            {"ok": 3, "truncated": 1, "error": 2}, {"no_frames": 1, "media_null": 1}
        ),
    )
    assert str(found).splitlines()[:2] == [
        "6 rows in = 4 done before + 2 written: 2 ok",
        "output: 6 rows = 4 done + 2 failed: 1 media_null, 1 no_frames",
    ]
    assert found.as_json()["output"] == {
        "rows": 6,
        "done": 4,
        "failed": 2,
        "statuses": {"ok": 3, "truncated": 1, "error": 2},
        "error_codes": {"no_frames": 1, "media_null": 1},
    }


@pytest.mark.parametrize(
    ("prepare_s", "generate_s", "slower", "line"),
    [
        (
            19.0,
            5.0,
            "prepare",
            "prepare was busy 95% of the time of 2 workers, the engines had 0.5",
        ),
        (2.0, 79.0, "generate", "busy 10% of the time of 2 workers, the engines had 7.9 of 8 rows"),
    ],
)
def test_a_slow_decoder_and_a_slow_engine_are_told_apart(prepare_s, generate_s, slower, line):
    found = report(prepare_s=prepare_s, generate_s=generate_s)
    assert found.as_json()["slower_stage"] == slower
    assert f"{slower} was the slower stage" in str(found)
    assert line in str(found)


CAPACITY = Capacity(
    batch_size=64,
    cache_gib=3.00049,
    cache_tokens=90_000,
    step_tokens=8192,
    vision_patches=16384,
    is_batch_given=False,
    is_cache_given=True,
    card_gib=22.0,
)


def test_what_the_engines_took_on_is_told_with_the_reason():
    assert report().as_json()["engine"] is None
    found = report()
    found = replace(found, usage=replace(found.usage, capacity=CAPACITY, num_out_of_memory=3))
    assert found.as_json()["engine"] == {
        "batch_size": 64,
        "cache_gib": 3.0,
        "cache_tokens": 90_000,
        "step_tokens": 8192,
        "vision_patches": 16384,
        "is_batch_given": False,
        "is_cache_given": True,
        "card_gib": 22.0,
        "used_gib": 0.0,
        "step_gib": 0.0,
        "kept_gib": 0.0,
        "why": str(CAPACITY),
        "out_of_memory": 3,
    }
    assert "batches of 64 sequences (for a card of 22.0 GiB); cache of 3 GiB" in str(CAPACITY)
    assert "3 tries of steps ran out of memory and were divided; lower --cache-gib" in str(found)
    assert "out of memory" not in str(report())


def test_engines_with_full_batches_are_slower_however_many_rows_may_be_there():
    found = report(generate_s=30.0)  # a mean of 3 rows, of 8
    assert found.usage.slower_stage == "prepare"
    assert replace(found.usage, num_sequences=4).slower_stage == "prepare"
    assert replace(found.usage, num_sequences=2).slower_stage == "generate"


def test_a_run_without_work_has_no_table():
    found = report(rows_written=0, rows_done_before=6, statuses={}, error_codes={})
    assert str(found).splitlines()[-1] == "nothing to do: all rows are done"


def test_what_the_object_stores_did_not_tell_is_not_called_nothing():
    found = report()
    assert "0.0 MB spilled" in str(found)
    unknown = replace(found, usage=replace(found.usage, spilled_bytes=None))
    assert "an unknown number of MB spilled" in str(unknown)
    assert unknown.as_json()["spilled_bytes"] is None


def test_a_run_whose_rows_all_failed_says_so_at_the_end():
    codes = {"media_forbidden": 4, "media_null": 2}
    failed = report(statuses={"error": 6}, error_codes=codes, first_error="a: not allowed")
    assert str(failed).splitlines()[-1] == (
        "ALL 6 ROWS OF THIS RUN FAILED: 4 media_forbidden, 2 media_null; the first is "
        "a: not allowed"
    )
    assert "FAILED" not in str(report())
    assert failed.as_json().keys() == report().as_json().keys()


def test_a_group_that_was_set_apart_is_told_with_its_reason():
    text = "group 3 (generation 5): killed (on node-7, 10.0.0.7)"
    told = report()
    told = replace(told, usage=replace(told.usage, groups_set_apart=(text,)))
    assert f"set apart: {text}" in str(told).splitlines()
    assert told.as_json()["groups_set_apart"] == [text]
    assert "set apart" not in str(report())
    assert report().as_json()["groups_set_apart"] == []


def captions_of(*captions, **changes):
    counts = CaptionCounts()
    counts.add_captions(captions)
    return replace(counts.summary(), **changes)


def test_the_most_frequent_caption_and_cut_texts_are_told():
    ends = {"stop": 90, "length": 8, "repetition": 2}
    found = report(captions=captions_of(*"aabc", finish_reasons=ends))

    assert "of 100 texts ended 8.0% by length, 2.0% by repetition" in str(found)
    assert 'the most frequent caption stands in 2 of 4 rows (50.0%): "a"' in str(found)
    assert found.as_json()["captions"] == {
        "num_captions": 4,
        "most_frequent": "a",
        "num_most_frequent": 2,
        "num_uncounted": 0,
        "finish_reasons": ends,
        "share_most_frequent": 0.5,
        "share_length": 0.08,
        "share_repetition": 0.02,
    }


@pytest.mark.parametrize(
    ("num_same", "num_captions", "is_warned"),
    [(6, 100, True), (5, 100, False), (6, 101, True), (99, 99, False), (500, 10_000, False),
     (501, 10_000, True)],
)  # fmt: skip
def test_a_caption_in_more_than_a_twentieth_of_a_hundred_rows_is_a_warning(
    num_same, num_captions, is_warned
):
    captions = captions_of(*["the same"] * num_same, *map(str, range(num_captions - num_same)))

    assert ("WARNING: " in str(report(captions=captions))) == is_warned


def test_a_run_without_captions_says_nothing_of_them():
    assert "caption" not in str(report(captions=CaptionSummary()))
    assert "caption" not in str(report(captions=captions_of("one")))  # of one row


def test_a_count_that_may_be_higher_is_called_the_least():
    found = report(captions=captions_of("x", "x", "y", num_uncounted=1))
    assert "caption stands in at least 2 of 3 rows" in str(found)


def test_a_caption_cannot_write_on_the_terminal():
    found = str(report(captions=captions_of(*["a\x1b[2J\nb"] * 2, "c")))
    assert "\x1b" not in found
    assert '"a [2J b"' in found


def test_captions_that_all_differ_are_said_to():
    assert "no two of 3 captions are the same" in str(report(captions=captions_of(*"abc")))
    pruned = report(captions=captions_of(*"abc", num_uncounted=1))
    assert "stands in at least 1 of 3 rows" in str(pruned)
