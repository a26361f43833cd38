"""Verdicts of several reviewers are merged, compared, exported, and turned into new inputs."""

# ruff: noqa: F811  # fixtures of another module
import io
import json
from dataclasses import replace

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import caption_videos, review
from jobs.review_page.clips import Clips
from jobs.review_page.html_file import VERDICT_FORMAT
from jobs.review_page.page import deal
from jobs.review_page.row_json import result_digest
from jobs.review_page.rows import read_output
from jobs.review_verdicts.agreement import agreement
from jobs.review_verdicts.comparison import win_interval
from jobs.review_verdicts.export import file_name
from jobs.review_verdicts.merge import majority
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.windows import TimeWindows
from pipeline.prompts.instructions import Instructions
from tests.clips import make_video, number_of
from tests.jobs.outputs import write_answered, write_output
from tests.jobs.test_review import (  # noqa: F401
    CAPTIONS,
    captions,
    clips,
    make_page,
    write_verdicts,
)
from tests.pipeline.decoding import decode_video

ROW = "clips.parquet#0"


def said(kind, number=0, **more):
    line = {"row_id": f"clips.parquet#{number}", "verdict": kind, "judged_at": "2026-01-01"}
    return line | more


def apply(captions, *paths, to="reviewed", more=()):
    to = captions.parent / to
    files = [part for path in paths for part in ("--apply", str(path))]
    return review.main([str(captions), *files, "--export", str(to), *map(str, more)]), to


def by(captions, reviewer, *lines):
    return write_verdicts(
        captions, list(lines), f"{reviewer}.json", format=VERDICT_FORMAT, reviewer=reviewer
    )


def test_the_majority_of_reviewers_decides_and_their_agreement_is_told(captions, capsys):
    ana = by(captions, "ana", said("accept"), said("accept", 1, reasons=["vague"]), said(None, 3))
    ben = by(captions, "ben", said("accept"), said("reject", 1, reasons=["wrong"], comment="no"))
    eva = by(captions, "eva", said("reject"), said("unsure", 2))

    code, to = apply(captions, ana, ben, eva)

    assert code == 0
    out = capsys.readouterr().out
    assert "4 verdicts: 1 accept, 1 only notes, 2 unsure" in out
    assert "2 rows judged by several: 25 % of the pairs of verdicts agree" in out
    rows = pq.read_table(to / "verdicts.parquet").to_pylist()
    assert [row["verdict"] for row in rows] == ["accept", "unsure", "unsure", None]
    assert rows[1]["review_reasons"] == ["vague", "wrong"]
    assert rows[1]["review_comment"] == "ben: no"
    assert rows[0]["review_voices"] == [
        {"reviewer": "ana", "verdict": "accept"},
        {"reviewer": "ben", "verdict": "accept"},
        {"reviewer": "eva", "verdict": "reject"},
    ]
    assert rows[0]["final_caption"] == CAPTIONS[0]
    assert rows[1]["final_caption"] is None


def test_the_later_verdict_of_one_reviewer_counts(captions, capsys):
    first = by(captions, "ana", said("reject", judged_at="2026-01-02"))
    again = write_verdicts(
        captions, [said("accept", judged_at="2026-01-03")], "again.json", reviewer="ana"
    )

    assert apply(captions, again, first)[0] == 0
    assert "1 verdicts: 1 accept" in capsys.readouterr().out


def test_files_of_the_first_version_are_read(captions, capsys):
    path = write_verdicts(captions, [said("accept")], format="moonsweep-verdicts-1")
    assert apply(captions, path)[0] == 0
    assert "1 verdicts: 1 accept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (said("accept", digest="0" * 16), "has another caption now than the one that was judged"),
        (said("accept", 3), "has an error (media_corrupt) and was accepted"),
        (said("accept", parts={"page 9": "reject"}), "has no part 'page 9'"),
        (said("accept", parts={"page 9": []}), "verdicts on parts that are not accept, reject"),
        (said("left"), "must be one of accept, reject, edit, unsure"),
    ],
)
def test_verdicts_that_do_not_fit_their_row_are_refused(captions, capsys, line, message):
    code, _ = apply(captions, by(captions, "ana", line))

    printed = capsys.readouterr().err
    assert code == 2
    assert message in printed
    assert line["row_id"] in printed
    assert printed.count("\n") == 1


def test_rejected_windows_are_left_out_of_the_subtitles(clips):
    asked = Instructions(windows=TimeWindows(length_s=1.0), frames=FrameSampling(num_frames=2))
    output = write_answered(clips(instructions=asked), lambda request: "it moves")
    path = by(output, "ana", said("accept", parts={"0.0 - 1.0 s": "reject"}))

    code, to = apply(output, path)

    assert code == 0
    cues = (to / "webvtt" / f"{file_name(ROW)}.vtt").read_text()
    assert cues == "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\nit moves\n"
    (row,) = pq.read_table(to / "verdicts.parquet").to_pylist()
    assert row["review_parts"] == [{"part": "0.0 - 1.0 s", "verdict": "reject"}]


def test_only_what_stands_is_exported_and_what_was_rejected_is_captioned_again(captions, capsys):
    edited = said("edit", 2, caption="mine")
    path = by(captions, "ana", said("accept"), said("reject", 1), edited, said("reject", 3))

    code, to = apply(captions, path, more=["--accepted", "--rejected"])

    assert code == 0
    lines = [json.loads(line) for line in (to / "captions.jsonl").read_text().splitlines()]
    assert [line["caption"] for line in lines] == [CAPTIONS[0], "mine"]
    rejected = pq.read_table(to / "rejected.parquet").to_pylist()
    assert [row["row_id"] for row in rejected] == ["clips.parquet#1", "clips.parquet#3"]
    assert rejected[0]["question"] == "What <b>moves</b>?"
    told = capsys.readouterr().out.splitlines()[-1]
    options = told[told.index("--input") : told.index(" and another")].split()
    again = captions.parent / "again"
    job = ["--output", str(again), "--model", "demo", "--inline", "--max-tokens", "2"]
    assert caption_videos.main([*options, *job]) == 0
    rows = pq.read_table(again).sort_by("row_id").to_pylist()
    assert [row["row_id"] for row in rows] == ["clips.parquet#1", "clips.parquet#3"]
    assert [row["error_code"] for row in rows] == [None, "media_corrupt"]


def test_rejected_rows_need_their_input(captions, capsys):
    path = by(captions, "ana", said("reject"))
    (captions / "_run.yaml").unlink()
    assert apply(captions, path, more=["--rejected"])[0] == 2
    assert "name it with --input" in capsys.readouterr().err
    assert apply(captions, by(captions, "ben", said("accept")), more=["--rejected"])[0] == 0
    assert "no row was rejected" in capsys.readouterr().out


def test_a_review_is_dealt_so_that_all_share_some_rows_and_each_other_row_is_with_one(captions):
    ids = [str(number) for number in range(100)]
    dealt = deal(ids, 3, 10, seed=0)
    shared = set.intersection(*map(set, dealt))
    assert len(shared) == 10
    assert sorted(set().union(*dealt)) == sorted(ids)
    assert sorted(map(len, dealt)) == [40, 40, 40]
    assert deal(ids, 1, 10, seed=0)[0] != ids
    assert sorted(deal(["a"], 2, 20, seed=0)) == [["a"], ["a"]]

    page = captions.parent / "page.html"
    assert review.main([str(captions), "--page", str(page), "--split", "2", "--shared", "2"]) == 0
    ids = [
        [row["id"] for row in make_rows(page.with_name(f"page-reviewer-{number}.html"))]
        for number in (1, 2)
    ]
    assert [len(each) for each in ids] == [3, 3]
    assert len({*ids[0], *ids[1]}) == 4
    assert ids[0] == sorted(ids[0])


def make_rows(path):
    text = path.read_text()
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])["rows"]


@pytest.fixture
def other(captions):
    changed = ("a plain caption", "another", "a red square", "")
    return write_output(captions.parent / "b", captions.parent / "clips.parquet", changed)


def test_a_blind_page_shows_changed_captions_on_shuffled_sides_and_no_name(captions, other):
    pages = [
        make_page(captions, "--against", other, "--blind", "--no-frames", "--seed", seed)
        for seed in range(4)
    ]

    lefts = set()
    for page in pages:
        rows = page.data["rows"]
        assert [row["id"] for row in rows] == ["clips.parquet#1", "clips.parquet#2"]
        for row in rows:
            assert {row["caption"], row["other"]["caption"]} in [
                {CAPTIONS[1], "another"},
                {CAPTIONS[2], "a red square"},
            ]
        lefts |= {row["caption"] for row in rows}
        assert (page.data["output"], page.data["other"]) == ("", "right")
    assert len(lefts) > 2
    assert "changed in the recipe" not in (captions.parent / "page.html").read_text()


def test_the_win_rate_of_a_blind_comparison(captions, other, capsys):
    theirs = {row["row_id"]: row for row in read_output(other).rows.to_pylist()}
    left = result_digest(theirs["clips.parquet#2"], read_output(other))
    lines = [said("right", 2, left=left)]  # the second output is at the left, so the first one won
    files = [
        write_verdicts(captions, lines, f"{who}.json", mode="blind", reviewer=who) for who in "ab"
    ]

    code, to = apply(captions, *files, more=["--against", other])

    assert code == 0
    out = capsys.readouterr().out
    assert f"1 rows compared: {other} is better in 0, {captions} in 1, 0 ties" in out
    assert "0.00 of 1 decided rows, 95 % interval 0.00 to 0.79" in out
    assert "alpha undefined, since all verdicts are the same" in out
    assert pq.read_table(to / "comparison.parquet").to_pylist() == [
        {"row_id": "clips.parquet#2", "better": "first", "voices": ["first", "first"]}
    ]
    stale = write_verdicts(captions, [said("left", left="0" * 16)], "c.json", mode="blind")
    assert apply(captions, stale, more=["--against", other])[0] == 2
    assert "does not have the captions that were compared" in capsys.readouterr().err
    assert apply(captions, files[0], by(captions, "eva", said("accept")))[0] == 2
    assert "is of a review" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--blind"], "name the second one with --against"),
        (["--accepted"], "name them with --apply"),
        (["--shared", "-1"], "not -1"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(captions, capsys, arguments, message):
    with pytest.raises(SystemExit):
        review.main([str(captions), *arguments])
    assert message in capsys.readouterr().err


def test_outputs_without_a_difference_cannot_be_compared_blindly(captions, capsys):
    page = captions.parent / "page.html"
    same = [
        str(captions),
        "--against",
        str(captions),
        "--blind",
        "--no-frames",
        "--page",
        str(page),
    ]
    assert review.main(same) == 2
    assert "no row has two different captions" in capsys.readouterr().err


def test_alpha_is_that_of_the_published_example():
    # Krippendorff (2011), example C: four observers, twelve units, missing values; alpha 0.743.
    observers = ("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3")
    observers += (". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 .")
    columns = zip(*(line.split() for line in observers), strict=True)
    found = agreement([[value for value in unit if value != "."] for unit in columns])
    assert found is not None
    assert found.alpha == pytest.approx(0.743, abs=5e-4)
    assert found.num_rows == 11
    assert agreement([["accept"], []]) is None
    same = agreement([["accept", "accept"]])
    assert same is not None
    assert (same.share, same.alpha) == (1.0, None)


def test_intervals_and_majorities():
    assert win_interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson, 95 %
    assert win_interval(0, 3)[0] == 0.0
    assert majority([]) is None
    assert majority(["reject", "accept", "reject"]) == "reject"
    assert majority(["reject", "accept"]) == "unsure"
    assert majority(["first", "second"], "tie") == "tie"


def test_a_clip_keeps_the_pictures_and_their_times_within_its_size():
    video = make_video(numbers=range(40), size=(65, 49), codec="mpeg4")
    clips = Clips(1 << 20)
    frames = decode_video(video, clips.request.sampling)

    clip = clips.encode(frames)

    assert clip is not None
    with av.open(io.BytesIO(clip), "r") as file:
        shown = list(file.decode(video=0))
    assert (shown[0].width, shown[0].height) == (64, 48)
    times_s = [frame.time for frame in shown]
    assert np.allclose(times_s, frames.timestamps_s - frames.timestamps_s[0], atol=2e-3)
    numbers = [number_of(frame.to_ndarray(format="rgb24")) for frame in shown]
    assert np.abs(np.subtract(numbers, [number_of(rgb) for rgb in frames.rgb])).max() <= 1
    less = Clips(len(clip) // 2).encode(frames)
    assert less is None or len(less) <= len(clip) // 2
    assert Clips(100).encode(frames) is None
    assert clips.encode(replace(frames, rgb=frames.rgb[:, :1])) is None  # one line of pixels
    still = decode_video(video, FrameSampling(num_frames=1))
    assert clips.encode(still) is None
