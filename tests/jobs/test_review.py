"""The review page says what the output says and nothing of it runs; verdicts come back checked."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import review
from jobs.review_page.page import VERDICT_FORMAT
from jobs.review_page.rows import read_output
from jobs.review_page.shots import make_strips
from jobs.review_page.verdicts import clock, cue_text, file_name, span_end_s
from tests.clips import make_video, number_of
from tests.jobs.outputs import write_input, write_output

HOSTILE = "</script><img src=x onerror='pwned=1'><!-- <script>pwned=1</script> & \u2028\u202e done"
CAPTIONS = ("a plain caption", HOSTILE, "a red circle moves left", "")


@pytest.fixture
def captions(tmp_path):
    """An output of four rows; the last one's video is broken."""
    source = write_input(tmp_path)
    return write_output(tmp_path / "captions", source, CAPTIONS)


class Page(HTMLParser):
    """The elements of a page, and what stands in its scripts and styles."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.tags, self.blocks, self.policy = [], {}, ""
        self._open = None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self._open = attrs.get("id", tag) if tag in ("script", "style") else None
        if attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(attrs["content"])

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.blocks[self._open] = self.blocks.get(self._open, "") + data

    @property
    def data(self):
        return json.loads(self.blocks["data"])


def make_page(captions, *more):
    path = captions.parent / "page.html"
    assert review.main([str(captions), "--page", str(path), *map(str, more)]) == 0
    return Page(path)


def test_a_page_holds_every_row_with_the_frames_that_the_model_saw(captions, capsys):
    page = make_page(captions, "--frame-px", "64")

    rows = page.data["rows"]
    assert [row["id"] for row in rows] == [f"clips.parquet#{n}" for n in range(4)]
    assert [row["caption"] for row in rows] == [*CAPTIONS[:3], None]
    assert [row["prompt"] for row in rows] == [None, "What <b>moves</b>?", None, None]
    assert page.data["prompt"] == "Describe this video in detail."
    assert rows[3]["error_code"] == "media_corrupt"
    assert rows[3]["strips"] == []
    assert rows[0]["min_logprob"] is None  # JSON has no infinity
    assert ["n", "2"] in rows[2]["more"]
    (strip,) = rows[2]["strips"]
    assert strip == {"times_s": [0.2, 0.7, 1.2, 1.7], "width_px": 64}
    image = Image.open(io.BytesIO(base64.b64decode(page.blocks["f2"])))
    assert image.size == (4 * 64, 48)
    numbers = [number_of(np.asarray(image)[:, 64 * k : 64 * k + 64]) for k in range(4)]
    assert numbers == [4, 9, 14, 19]  # clip 2 begins with picture 2
    assert "4 of 4 rows" in capsys.readouterr().out


def test_nothing_of_a_row_is_markup_and_only_our_script_may_run(captions):
    page = make_page(captions)

    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags
    assert tags.count("script") == 3 + 2  # three strips, the rows, the program
    runnable = [attrs for tag, attrs in page.tags if tag == "script" and "type" not in attrs]
    assert runnable == [{}]
    assert not any(name.startswith("on") or name == "style" for _, a in page.tags for name in a)
    assert not any({"src", "srcset", "action"} & attrs.keys() for _, attrs in page.tags)
    for kind, block in (("script", "script"), ("style", "style")):
        digest = hashlib.sha256(page.blocks[block].encode()).digest()
        assert f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" in page.policy
    assert page.policy.startswith("default-src 'none'; ")
    assert "unsafe" not in page.policy
    assert "require-trusted-types-for 'script'" in page.policy
    text = (captions.parent / "page.html").read_text()
    assert not re.search(r"https?://", text)


def test_two_outputs_stand_side_by_side_with_what_changed(captions):
    changed = ("a plain caption", "another", "a red circle moves right", "")
    source = captions.parent / "clips.parquet"
    other = write_output(captions.parent / "eight", source, changed, num_frames=8)

    page = make_page(captions, "--against", other)

    rows = page.data["rows"]
    assert [row["changed"] for row in rows] == [False, True, True, False]
    assert [row["other"]["caption"] for row in rows] == [*changed[:3], None]
    assert rows[0]["num_frames"] == 4
    assert rows[0]["other"]["num_frames"] == 8
    assert "f0" in page.blocks
    assert "g0" in page.blocks
    text = (captions.parent / "page.html").read_text()
    assert "changed in the recipe: frames.num_frames: 4 -&gt; 8" in text


def test_rows_say_when_their_media_is_gone_or_changed(captions, capsys):
    (captions.parent / "0.mp4").unlink()
    (captions.parent / "1.mp4").write_bytes(make_video(numbers=range(30)))

    rows = make_page(captions).data["rows"]

    assert "the media cannot be decoded now" in rows[0]["note"]
    assert "these are not the frames that the model saw" in rows[1]["note"]
    assert rows[2]["note"] is None
    assert "2 rows without their frames" in capsys.readouterr().out

    (captions / "_run.yaml").unlink()
    rows = make_page(captions).data["rows"]
    assert all("does not say what its input was; name it with --input" in r["note"] for r in rows)
    rows = make_page(captions, "--input", captions.parent / "clips.parquet").data["rows"]
    assert len(rows[2]["strips"]) == 1
    rows = make_page(captions, "--no-frames").data["rows"]
    assert all(row["note"] is None and row["strips"] == [] for row in rows)


def test_a_large_output_is_cut_into_files_and_drawn_from(captions):
    sizes = make_page(captions).data["rows"]
    assert len(sizes) == 4
    from jobs.review_page.page import Side, write_pages
    from jobs.review_page.shots import Shots, Strip

    output = read_output(captions)
    strip = Strip(jpeg=b"x" * 5000, times_s=(0.0,), width_px=9)
    shots = {row_id: Shots(strips=(strip,)) for row_id in output.rows["row_id"].to_pylist()}
    side = Side(output=output, shots=shots)

    paths = write_pages(captions.parent / "big.html", side, None, max_bytes=15_000)

    assert [path.name for path in paths] == ["big.html", "big-2.html"]
    pages = [Page(path) for path in paths]
    assert [len(page.data["rows"]) for page in pages] == [2, 2]
    assert {"href": "big-2.html"} in [attrs for tag, attrs in pages[0].tags if tag == "a"]
    drawn = [make_page(captions, "--max-rows", 2, "--seed", s).data["rows"] for s in (1, 1, 2, 3)]
    ids = [[row["id"] for row in rows] for rows in drawn]
    assert ids[0] == ids[1]
    assert len({tuple(each) for each in ids}) > 1
    assert all(len(each) == 2 for each in ids)
    (row,) = make_page(captions, "--status", "error").data["rows"]
    assert row["id"] == "clips.parquet#3"


def test_strips_hold_eight_frames_and_at_most_so_many_as_asked():
    rgb = np.zeros((40, 6, 10, 3), np.uint8)

    strips = make_strips(rgb, np.arange(40.0), max_frames=16)

    times = [time for strip in strips for time in strip.times_s]
    assert [len(strip.times_s) for strip in strips] == [8, 8]
    assert (times[0], times[-1]) == (0.0, 39.0)
    assert make_strips(rgb, np.arange(40.0), max_frames=64)[4].times_s[-1] == 39.0


def write_verdicts(captions, lines, name="v.json", **changes):
    output = read_output(captions)
    value = {"format": VERDICT_FORMAT, "output": output.name, "verdicts": lines}
    value["recipe_sha256"] = output.recipe_sha256
    path = captions.parent / name
    path.write_text(json.dumps(value | changes))
    return path


LINES = [
    {"row_id": "clips.parquet#0", "verdict": "accept", "caption": None, "judged_at": "2026-01-01"},
    {"row_id": "clips.parquet#1", "verdict": "reject", "caption": None, "judged_at": "2026-01-01"},
    {"row_id": "clips.parquet#2", "verdict": "edit", "caption": "left --> right\n\n& on"},
]


def test_verdicts_become_parquet_json_lines_label_studio_and_webvtt(captions, capsys):
    path = write_verdicts(captions, LINES)
    to = captions.parent / "reviewed"

    assert review.main([str(captions), "--apply", str(path), "--export", str(to)]) == 0

    assert "3 verdicts: 1 accept, 1 edit, 1 reject" in capsys.readouterr().out
    rows = pq.read_table(to / "verdicts.parquet").to_pylist()
    assert [row["verdict"] for row in rows] == ["accept", "reject", "edit"]
    assert [row["final_caption"] for row in rows] == [CAPTIONS[0], None, "left --> right\n\n& on"]
    assert rows[1]["caption"] == HOSTILE
    lines = [json.loads(line) for line in (to / "captions.jsonl").read_text().splitlines()]
    assert lines[1]["prompt"] == "What <b>moves</b>?"
    assert lines[2]["caption"] == "left --> right\n\n& on"
    assert lines[2]["video"] == "2.mp4"
    tasks = json.loads((to / "label_studio.json").read_text())
    assert tasks[0]["data"]["video"] == "0.mp4"
    assert tasks[0]["predictions"][0]["result"][0]["value"] == {"text": [CAPTIONS[0]]}
    assert [r["type"] for r in tasks[1]["annotations"][0]["result"]] == ["choices"]
    files = sorted((to / "webvtt").iterdir())
    assert len(files) == 2  # the rejected row has none
    cue = (to / "webvtt" / f"{file_name('clips.parquet#2')}.vtt").read_text()
    assert cue == "WEBVTT\n\n00:00:00.000 --> 00:00:01.900\nleft --&gt; right\n&amp; on\n"


@pytest.mark.parametrize(
    ("lines", "changes", "message"),
    [
        (LINES, {"format": "other"}, "is not a file of verdicts"),
        (LINES, {"recipe_sha256": "0"}, "judges captions of another recipe"),
        ([], {}, "no verdicts"),
        ([{"verdict": "accept"}], {}, "a verdict names no row"),
        ([LINES[0] | {"verdict": "fine"}], {}, "must be one of accept, reject, edit"),
        ([LINES[2] | {"caption": None}], {}, "was edited and has no caption"),
        ([LINES[0] | {"row_id": "x"}], {}, "has no row 'x'"),
        ([LINES[0], LINES[0] | {"verdict": "reject"}], {}, "is reject here and accept before"),
    ],
)
def test_verdicts_that_do_not_fit_are_refused_in_one_line(
    captions, capsys, lines, changes, message
):
    path = write_verdicts(captions, lines, **changes)

    assert review.main([str(captions), "--apply", str(path)]) == 2

    printed = capsys.readouterr().err
    assert printed.startswith("review: error: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_what_is_no_output_is_refused_in_one_line(tmp_path, captions, capsys):
    assert review.main([str(tmp_path)]) == 2
    assert "holds no part-*.parquet" in capsys.readouterr().err
    strange = tmp_path / "strange"
    strange.mkdir()
    pq.write_table(pa.table({"x": [1]}), strange / "part-0.parquet")
    assert review.main([str(strange)]) == 2
    assert "lacks the columns row_id, caption" in capsys.readouterr().err
    assert review.main([str(captions), "--against", str(strange)]) == 2
    capsys.readouterr()
    assert review.main([str(captions), "--input", str(tmp_path / "no.parquet")]) == 2
    assert "no.parquet" in capsys.readouterr().err


def test_times_text_and_names_of_webvtt():
    assert clock(3725.0615) == "01:02:05.062"
    assert cue_text(" a\r\n\r\n<b> & --> ") == "a\n&lt;b&gt; &amp; --&gt;"
    assert span_end_s(0.0, [0.5, 1.5, 2.5]) == 3.0
    assert span_end_s(10.0, [9.9, 11.0]) == 11.0
    assert re.fullmatch(r"[A-Za-z0-9_-]+", file_name("../../etc/passwd\n" * 20))
    assert file_name("a/b") != file_name("a_b")
    assert Path(file_name("x" * 500)).name == file_name("x" * 500)
