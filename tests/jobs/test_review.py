"""The review page says what the output says and nothing of it runs; verdicts come back checked."""

import base64
import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import review
from jobs.cli.checkpoint import DEMO
from jobs.review_page.display_size import DisplaySize
from jobs.review_page.html_file import VERDICT_FORMAT, PageSettings
from jobs.review_page.page import write_pages
from jobs.review_page.row_frames import RowFrames, SectionFrames, Thumbnail, make_section_frames
from jobs.review_page.row_json import Side
from jobs.review_page.rows import read_output
from jobs.review_page.sections import sections_of_rows
from jobs.review_page.source_decoder import limits_of
from jobs.review_verdicts.export import clock, cue_text, file_name, span_end_s
from model.engine.sequence import SamplingParams
from pipeline.config import PipelineConfig
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaLimits
from pipeline.media.windows import PageWindows, TimeWindows
from pipeline.prompts.frame_view import FrameView, Timestamps
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.named_prompts import NamedPrompt
from pipeline.schema import InputColumns
from tests.clips import make_video, number_of
from tests.jobs.outputs import write_answered, write_input, write_output
from tests.pipeline.pdfs import encrypted, make_pdf

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


def pictures_of(row):
    return [picture for section in row["sections"] for picture in section["pictures"]]


def marks_of(row):
    """Below the pictures of each part."""
    return [[picture["mark"] for picture in section["pictures"]] for section in row["sections"]]


def images_of(page, name):
    """The pictures of a block of data."""
    files = [base64.b64decode(text) for text in page.blocks[name].split(" ")]
    return [Image.open(io.BytesIO(file)) for file in files]


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
    assert "prompt: Describe this video in detail." in (captions.parent / "page.html").read_text()
    assert rows[3]["error_code"] == "media_corrupt"
    assert pictures_of(rows[3]) == []
    assert rows[0]["min_logprob"] is None  # JSON has no infinity
    assert ["n", "2"] in rows[2]["more"]
    assert marks_of(rows[2]) == [["0.2 s", "0.7 s", "1.2 s", "1.7 s"]]
    assert pictures_of(rows[2])[0]["width_px"] == 64
    images = images_of(page, "f2")
    assert [image.size for image in images] == [(64, 48)] * 4
    numbers = [number_of(np.asarray(image)) for image in images]
    assert numbers == [4, 9, 14, 19]  # clip 2 begins with picture 2
    assert "4 of 4 rows" in capsys.readouterr().out


def test_a_copy_of_an_output_below_its_input_has_the_frames_of_the_original(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    made = write_output(folder / "captions", write_input(folder), CAPTIONS, id_column="n")
    run = {"input": str(folder), "output": str(made)}
    (made / "_run.yaml").write_text(json.dumps(run))

    page = make_page(shutil.copytree(made, tmp_path / "copy"))
    assert [len(pictures_of(row)) for row in page.data["rows"]] == [4, 4, 4, 0]


def test_the_shards_of_an_output_are_one_page_with_their_frames(tmp_path, capsys):
    source = write_input(tmp_path)
    whole = write_output(tmp_path / "whole", source, CAPTIONS)
    part = pq.read_table(next(whole.glob("part-*")))
    for number in (1, 2):
        folder = tmp_path / "captions" / f"shard-{number}-of-2"
        folder.mkdir(parents=True)
        rows = part.slice(2 * (number - 1), 2)
        pq.write_table(rows, folder / "part-000000-x.parquet")
        shutil.copy(whole / "_run.yaml", folder)

    page = make_page(tmp_path / "captions")

    assert "4 of 4 rows" in capsys.readouterr().out
    rows = page.data["rows"]
    assert [row["id"] for row in rows] == [f"clips.parquet#{n}" for n in range(4)]
    assert [len(pictures_of(row)) for row in rows] == [4, 4, 4, 0]


def test_nothing_of_a_row_is_markup_and_only_our_script_may_run(captions):
    page = make_page(captions)

    tags = [tag for tag, _ in page.tags]
    assert [attrs for tag, attrs in page.tags if tag == "img"] == [{"id": "picture", "alt": ""}]
    assert tags.count("script") == 3 + 2  # pictures of three rows, the rows, the program
    runnable = [attrs for tag, attrs in page.tags if tag == "script" and "type" not in attrs]
    assert runnable == [{}]
    assert not any(name.startswith("on") or name == "style" for _, a in page.tags for name in a)
    assert not any({"src", "srcset", "action"} & attrs.keys() for _, attrs in page.tags)
    for kind, block in (("script", "script"), ("style", "style")):
        digest = hashlib.sha256(page.blocks[block].encode()).digest()
        assert f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" in page.policy
    assert page.policy.startswith("default-src 'none'; ")
    assert "unsafe" not in page.policy
    assert "media-src" not in page.policy
    assert "media-src data:; " in make_page(captions, "--with-clips").policy
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
    assert rows[0]["sections"][0]["num_frames"] == 4
    assert rows[0]["other"]["sections"][0]["num_frames"] == 8
    assert "f0" in page.blocks
    assert "g0" in page.blocks
    text = (captions.parent / "page.html").read_text()
    assert "changed in the recipe: frames.num_frames: 4 -&gt; 8" in text


def documents(folder, say=lambda request: f"# <b>{request.request_id}</b>", **windows):
    """An output of three documents: a PDF of three pages, a list of two, one with a password."""
    papers = [[make_pdf(["One", "Two", "Three"])], [make_pdf(["A"]), make_pdf()], [encrypted()]]
    pq.write_table(pa.table({"document": papers}), folder / "papers.parquet")
    config = PipelineConfig(
        input=str(folder / "papers.parquet"),
        output=str(folder / "parsed"),
        checkpoint=DEMO,
        columns=InputColumns(video="document"),
        instructions=Instructions(
            prompt="Markdown?",
            windows=PageWindows(answer_tokens=8, **windows),
            timestamps="none",
            max_frame_tokens=12,
        ),
    )
    return write_answered(config, say)


def test_documents_show_each_page_beside_its_text(tmp_path):
    rows = make_page(documents(tmp_path)).data["rows"]

    assert marks_of(rows[0]) == [["page 1"], ["page 2"], ["page 3"]]
    assert marks_of(rows[1]) == [["page 1"], ["page 2"]]
    assert rows[0]["sections"][2]["label"] == "page 3"
    assert rows[0]["sections"][2]["answers"] == [[None, "# <b>papers.parquet#0</b>", None]]
    assert rows[0]["are_pages"]
    assert rows[0]["are_caption"]
    width_px = pictures_of(rows[0])[0]["width_px"]
    assert width_px**2 * 842 / 595 == pytest.approx(12 * 28 * 28, rel=0.02)  # no finer than it saw
    page = make_page(tmp_path / "parsed", "--enlarged-px", 800)
    assert [image.height for image in images_of(page, "fL0")] == [800] * 3  # larger than it saw
    small = images_of(page, "f0")[0].size
    assert small == (width_px, pictures_of(rows[0])[0]["height_px"])
    assert "fL0" not in make_page(tmp_path / "parsed", "--enlarged-px", 0).blocks
    assert (rows[2]["sections"], rows[2]["error_code"]) == ([], "media_encrypted")
    assert all(row["note"] is None for row in rows)
    assert "pages" not in dict(rows[0]["more"])

    few = make_page(tmp_path / "parsed", "--max-frames", 2).data["rows"][0]
    assert marks_of(few) == [["page 1"], ["page 3"]]
    assert few["num_sections"] == 3
    assert not few["are_caption"]


def test_pages_that_share_a_prompt_stand_together(tmp_path):
    rows = make_page(documents(tmp_path, pages_per_prompt=2)).data["rows"]

    assert marks_of(rows[0]) == [["page 1", "page 2"], ["page 3"]]
    assert [section["label"] for section in rows[0]["sections"]] == ["pages 1 to 2", "page 3"]
    assert rows[0]["sections"][0]["answers"] == [["page 1", "# <b>papers.parquet#0</b>", None]]


def test_other_pages_than_the_model_saw_are_told(tmp_path):
    output = documents(tmp_path)
    changed = [[make_pdf(["One", "Two"])], [make_pdf(size=(400, 300)), make_pdf()], [encrypted()]]
    pq.write_table(pa.table({"document": changed}), tmp_path / "papers.parquet")

    rows = make_page(output).data["rows"]

    note = "these are not the pages that the model saw: the media has changed"
    assert [row["note"] for row in rows] == [note, note, None]
    assert marks_of(rows[0]) == [["page 1"], ["page 2"], []]


@pytest.fixture
def clips(tmp_path):
    """The settings of a run over two clips of 2 s, the second one broken."""
    videos = [make_video(numbers=range(20)), b"junk"]
    table = pa.table({"video": videos, "asked": [["What?", "Who?"], ["What?"]]})
    pq.write_table(table, tmp_path / "clips.parquet")
    return partial(
        PipelineConfig,
        input=str(tmp_path / "clips.parquet"),
        output=str(tmp_path / "captions"),
        checkpoint=DEMO,
    )


@pytest.mark.parametrize("merge", [None, "Sum up."])
def test_windows_have_their_frames_and_captions_by_window(clips, merge):
    windows = TimeWindows(length_s=1.0, overlap_s=0.5, merge=merge)
    asked = Instructions(windows=windows, frames=FrameSampling(num_frames=2))
    output = write_answered(clips(instructions=asked), lambda request: "it moves")

    first, second = make_page(output).data["rows"]

    assert [section["label"] for section in first["sections"]] == [
        *("0.0 - 1.0 s", "0.5 - 1.5 s", "1.0 - 2.0 s")
    ]
    assert marks_of(first)[1] == ["0.7 s", "1.2 s"]
    assert all(section["answers"] == [[None, "it moves", None]] for section in first["sections"])
    assert first["are_caption"] == (merge is None)
    assert first["note"] is None
    assert (second["sections"], second["error_code"]) == ([], "media_corrupt")


def looked(frames, tokens, timestamps: Timestamps = "seconds"):
    sampling = FrameSampling(num_frames=frames)
    return FrameView(frames=sampling, timestamps=timestamps, max_frame_tokens=tokens)


def test_prompts_that_see_a_row_in_different_ways_have_frames_of_their_own(clips):
    prompts = (
        NamedPrompt(name="caption", text="Describe.", view=looked(1, 2)),
        NamedPrompt(name="who", text="{asked}", over="asked", view=looked(4, 12)),
        NamedPrompt(name="mood", text="Describe.", view=looked(4, 12, "mm:ss")),
    )
    asked = Instructions(named_prompts=prompts)
    columns = InputColumns(lists=("asked",))
    output = write_answered(clips(instructions=asked, columns=columns), lambda request: "yes")

    page = make_page(output)

    first, second = page.data["rows"]
    text = (output.parent / "page.html").read_text()
    assert "prompt: caption, mood: Describe.\nwho: {asked}" in text
    assert [section["label"] for section in first["sections"]] == [
        "1 frame of at most 2 tokens",
        "4 frames of at most 12 tokens",
    ]
    assert marks_of(first) == [["1.0 s"], ["0.2 s", "0.7 s", "1.2 s", "1.7 s"]]
    coarse, fine = (section["pictures"][0]["width_px"] for section in first["sections"])
    assert coarse < fine
    names = [[name for name, *_ in section["answers"]] for section in first["sections"]]
    assert names == [
        ["caption, timestamps seconds"],
        ["who 1, timestamps seconds", "who 2, timestamps seconds", "mood, timestamps mm:ss"],
    ]
    assert first["note"] is None
    assert not {"mood", "who"} & dict(first["more"]).keys()
    assert [section["pictures"] for section in second["sections"]] == [[], []]
    assert second["sections"][1]["answers"][0][2].startswith("media_corrupt: ")


def test_typed_answers_are_shown_as_json_and_cut_ones_as_text(clips):
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    sampling = SamplingParams(schema=schema)
    prompts = [
        NamedPrompt(name=name, text="?", sampling=sampling, is_typed=True)
        for name in ("good", "huge")
    ]
    config = clips(instructions=Instructions(named_prompts=tuple(prompts)))
    answers = iter(['{"n": 7}', f'{{"n": {10**30}}}'])
    output = write_answered(config, lambda request: next(answers))

    first = make_page(output).data["rows"][0]

    (_, good, none), (_, huge, error) = first["sections"][0]["answers"]
    assert (good, none) == ('{"n": 7}', None)
    assert huge == f'{{"n": {10**30}}}'
    assert error.startswith("schema_failed: ")


def test_a_run_of_a_sweep_finds_its_clips_and_their_folder(clips, tmp_path):
    media, sweep = tmp_path / "media", tmp_path / "sweep"
    for folder in (media, sweep):
        folder.mkdir()
    (media / "a.mp4").write_bytes(make_video(numbers=range(20)))
    pq.write_table(pa.table({"video": ["a.mp4"]}), media / "test.parquet")
    pq.write_table(pa.table({"video": ["a.mp4"]}), sweep / "_clips.parquet")
    (sweep / "_run.yaml").write_text(f"input: {media / 'test.parquet'}\n")
    config = clips(
        input=str(sweep / "_clips.parquet"),
        output=str(sweep / "_runs"),
        media_folder=str(media),
        instructions=Instructions(named_prompts=(NamedPrompt(name="cell_0", text="?"),)),
    )
    output = write_answered(config, lambda request: "A")
    (output / "_run.yaml").unlink()  # a sweep has one for all its runs

    (row,) = make_page(output).data["rows"]

    assert row["note"] is None
    assert row["sections"][0]["answers"] == [["cell_0", "A", None]]
    assert len(marks_of(row)[0]) == 8


def test_media_are_decoded_within_the_limits_of_the_run():
    limits = limits_of({"max-pages": 5000, "max-rgb-bytes": "2G", "frames": 8})

    assert limits == MediaLimits(max_pages=5000, max_rgb_bytes=2 << 30)


def test_rows_say_when_their_media_is_gone_or_changed(captions, capsys):
    (captions.parent / "0.mp4").unlink()
    (captions.parent / "1.mp4").write_bytes(make_video(numbers=range(30)))

    rows = make_page(captions).data["rows"]

    assert "the media cannot be decoded now" in rows[0]["note"]
    assert "these are not the frames that the model saw" in rows[1]["note"]
    assert rows[2]["note"] is None
    assert "2 rows without frames; the first one:" in capsys.readouterr().out

    (captions / "_run.yaml").unlink()
    rows = make_page(captions).data["rows"]
    assert all("does not say what its input was; name it with --input" in r["note"] for r in rows)
    rows = make_page(captions, "--input", captions.parent / "clips.parquet").data["rows"]
    assert len(pictures_of(rows[2])) == 4
    rows = make_page(captions, "--no-frames").data["rows"]
    assert all(row["note"] is None and pictures_of(row) == [] for row in rows)


def test_a_large_output_is_cut_into_files_and_drawn_from(captions):
    sizes = make_page(captions).data["rows"]
    assert len(sizes) == 4
    output = read_output(captions)
    picture = Thumbnail(jpeg=b"x" * 5000, mark="0.0 s", width_px=9, height_px=9)
    sections = sections_of_rows(output, 16)
    frames = dict.fromkeys(
        sections, RowFrames(sections=(SectionFrames(pictures=(picture,), num_frames=1),))
    )
    side = Side(output=output, sections=sections, frames=frames)

    paths = write_pages(captions.parent / "big.html", side, None, PageSettings(max_bytes=15_000))

    assert [path.name for path in paths] == ["big.html", "big-2.html"]
    pages = [Page(path) for path in paths]
    assert [len(page.data["rows"]) for page in pages] == [2, 2]
    captions_of = pa.array(["x" * 9000] * 4, pa.large_string())
    column = output.rows.column_names.index("caption")
    wordy = replace(output, rows=output.rows.set_column(column, "caption", captions_of))
    side = Side(output=wordy, sections=sections, frames={})
    assert (
        len(write_pages(captions.parent / "wordy.html", side, None, PageSettings(max_bytes=15_000)))
        == 4
    )
    assert {"href": "big-2.html"} in [attrs for tag, attrs in pages[0].tags if tag == "a"]
    drawn = [make_page(captions, "--max-rows", 2, "--seed", s).data["rows"] for s in (1, 1, 2, 3)]
    ids = [[row["id"] for row in rows] for rows in drawn]
    assert ids[0] == ids[1]
    assert len({tuple(each) for each in ids}) > 1
    assert all(len(each) == 2 for each in ids)
    (row,) = make_page(captions, "--status", "error").data["rows"]
    assert row["id"] == "clips.parquet#3"


def test_of_many_pictures_some_are_kept_evenly_and_each_may_be_kept_larger_too():
    small, large = np.zeros((6, 10, 3), np.uint8), np.zeros((60, 400, 3), np.uint8)
    pictures = [(small, f"{number} s") for number in range(40)]

    some = make_section_frames(pictures, 16)

    marks = [picture.mark for picture in some.pictures]
    assert (len(marks), marks[0], marks[-1], some.num_frames) == (16, "0 s", "39 s", 40)
    shrink = DisplaySize(200, 10_000.0)
    two = make_section_frames([(small, "a"), (large, "b")], 2, shrink).pictures
    assert [each.larger is None for each in two] == [True, False]
    assert (two[1].width_px, two[1].height_px) == (200, 30)
    assert Image.open(io.BytesIO(two[1].larger or b"")).size == (400, 60)


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
    assert '<Video name="video" value="$video"/>' in (to / "label_studio.xml").read_text()
    assert [r["type"] for r in tasks[1]["annotations"][0]["result"]] == ["choices"]
    files = sorted((to / "webvtt").iterdir())
    assert len(files) == 2  # the rejected row has none
    cue = (to / "webvtt" / f"{file_name('clips.parquet#2')}.vtt").read_text()
    assert cue == "WEBVTT\n\n00:00:00.000 --> 00:00:01.900\nleft --&gt; right\n&amp; on\n"


def test_documents_are_shown_as_such_by_label_studio(tmp_path):
    output = documents(tmp_path)
    row_id = read_output(output).rows["row_id"][0].as_py()
    path = write_verdicts(output, [{"row_id": row_id, "verdict": "accept", "caption": None}])
    to = tmp_path / "reviewed"

    assert review.main([str(output), "--apply", str(path), "--export", str(to)]) == 0
    assert '<Pdf name="pdf" value="$pdf"/>' in (to / "label_studio.xml").read_text()
    (task,) = json.loads((to / "label_studio.json").read_text())
    assert {"row_id", "pdf", "prompt"} == set(task["data"])
    assert {each["to_name"] for each in task["annotations"][0]["result"]} == {"pdf"}


def test_accepted_windows_become_cues_of_their_own(clips, tmp_path):
    windows = TimeWindows(length_s=1.0)
    asked = Instructions(windows=windows, frames=FrameSampling(num_frames=2))
    output = write_answered(clips(instructions=asked), lambda request: "a --> b")
    cues = tmp_path / "reviewed" / "webvtt" / f"{file_name('clips.parquet#0')}.vtt"
    apply = [str(output), "--export", str(tmp_path / "reviewed"), "--apply"]

    assert review.main([*apply, str(write_verdicts(output, LINES[:1]))]) == 0
    assert cues.read_text() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na --&gt; b\n\n"
        "00:00:01.000 --> 00:00:02.000\na --&gt; b\n"
    )
    edited = [LINES[0] | {"verdict": "edit", "caption": "all"}]
    assert review.main([*apply, str(write_verdicts(output, edited))]) == 0
    assert cues.read_text() == "WEBVTT\n\n00:00:00.000 --> 00:00:01.900\nall\n"


@pytest.mark.parametrize(
    ("lines", "changes", "message"),
    [
        (LINES, {"format": "other"}, "is not a file of verdicts"),
        (LINES, {"recipe_sha256": "0"}, "judges captions of another recipe"),
        ([], {}, "no verdicts"),
        ([{"verdict": "accept"}], {}, "a verdict names no row"),
        ([LINES[0] | {"verdict": "fine"}], {}, "must be one of accept, reject, edit, unsure"),
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


@pytest.mark.parametrize("arguments", [["s3://b/captions"], ["x", "--against", "s3://b/captions"]])
def test_an_output_on_an_object_store_is_to_be_copied_first(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        review.main(arguments)

    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert "s3://b/captions is a URI; copy the output to a disk first" in err
    assert err.count("\n") == 1


def test_times_text_and_names_of_webvtt():
    assert clock(3725.0615) == "01:02:05.062"
    assert cue_text(" a\r\n\r\n<b> & --> ") == "a\n&lt;b&gt; &amp; --&gt;"
    assert span_end_s(0.0, [0.5, 1.5, 2.5]) == 3.0
    assert span_end_s(10.0, [9.9, 11.0]) == 11.0
    assert re.fullmatch(r"[A-Za-z0-9_-]+", file_name("../../etc/passwd\n" * 20))
    assert file_name("a/b") != file_name("a_b")
    assert Path(file_name("x" * 500)).name == file_name("x" * 500)
