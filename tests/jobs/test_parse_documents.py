"""Documents become Markdown page by page, and long videos captions window by window."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import caption_videos, parse_documents, review
from jobs.cli import config_file
from jobs.cli.pipeline_config import pipeline_config
from pipeline.media.windows import PageWindows, TimeWindows
from tests.clips import make_video
from tests.pipeline.pdfs import encrypted, make_pdf
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


def options(make_parser, *more):
    required = ["--input", "a.parquet", "--output", "o", "--model", "demo"]
    return config_file.parse(make_parser, [*required, *more])


def test_each_document_is_one_row_and_the_same_command_continues(tmp_path, checkpoint, capfd):
    (tmp_path / "paper.pdf").write_bytes(make_pdf(["One", "Two", "Three"]))
    rows = [
        [{"bytes": None, "path": "paper.pdf"}],
        [{"bytes": make_pdf(["A"]), "path": None}, {"bytes": make_pdf(["B"]), "path": None}],
        [{"bytes": encrypted(), "path": None}],
        None,
    ]
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"key": list("abcd"), "document": pa.array(rows, kind)})
    pq.write_table(table, tmp_path / "documents.parquet")
    output = tmp_path / "parsed"
    command = [
        *("--input", str(tmp_path / "documents.parquet"), "--output", str(output)),
        *("--model", str(checkpoint), "--id-column", "key", "--max-tokens", "4", "--inline"),
        *("--frame-tokens", "16"),
    ]

    assert parse_documents.main([*command, "--limit", "3"]) == 0, capfd.readouterr().err
    assert parse_documents.main(command) == 0, capfd.readouterr().err

    a, b, c, d = pq.read_table(output).sort_by("row_id").to_pylist()
    assert (a["num_pages"], b["num_pages"]) == (3, 2)
    assert [page is None for page in a["pages"]] == [False] * 3
    assert [window["first_page"] for window in b["page_windows"]] == [1, 2]
    assert a["num_generated_tokens"] == sum(
        window["num_generated_tokens"] for window in a["page_windows"]
    )
    assert set(a["truncated_pages"]) <= {1, 2, 3}
    assert [row["error_code"] for row in (c, d)] == ["media_encrypted", "media_null"]
    assert review.main([str(output), "--page", str(tmp_path / "page.html")]) == 0
    assert "without frames" not in capfd.readouterr().out


def test_a_long_video_has_a_timeline_and_one_caption(tmp_path, checkpoint, capfd):
    clips = [make_video(numbers=range(25)), make_video(numbers=range(6)), b"junk"]
    pq.write_table(pa.table({"key": list("abc"), "video": clips}), tmp_path / "clips.parquet")
    output = tmp_path / "captions"
    command = [
        *("--input", str(tmp_path / "clips.parquet"), "--output", str(output)),
        *("--model", str(checkpoint), "--id-column", "key", "--max-tokens", "4", "--inline"),
        *("--frame-tokens", "6", "--frames", "2", "--window-s", "1", "--merge"),
        *("--window-overlap-s", "0.25"),
    ]

    assert caption_videos.main(command) == 0, capfd.readouterr().err

    a, b, c = pq.read_table(output).sort_by("row_id").to_pylist()
    spans = [(window["start_s"], window["end_s"]) for window in a["timeline"]]
    assert spans == [(0.0, 1.0), (0.75, 1.75), (1.5, 2.5)]
    assert all(window["num_generated_tokens"] for window in a["timeline"])
    merged = a["num_generated_tokens"] - sum(w["num_generated_tokens"] for w in a["timeline"])
    assert merged > 0
    assert a["caption"] is not None
    assert len(b["timeline"]) == 1
    assert b["caption"] == b["timeline"][0]["caption"]
    assert (c["timeline"], c["error_code"]) == (None, "media_corrupt")
    assert review.main([str(output), "--page", str(tmp_path / "page.html")]) == 0
    assert "without frames" not in capfd.readouterr().out


def test_the_options_of_documents_make_page_windows():
    plain = options(parse_documents.make_parser)
    together = options(parse_documents.make_parser, "--pages-per-prompt", "max")

    config = pipeline_config(plain)
    assert config.instructions.windows == PageWindows(pages_per_prompt=1, answer_tokens=4096)
    assert config.instructions.max_frame_tokens is None
    assert config.instructions.timestamps == "none"
    assert config.columns.video == "document"
    assert config.sampling.temperature == 0.0
    windows = pipeline_config(together).instructions.windows
    assert windows == PageWindows(pages_per_prompt=None, answer_tokens=4096)
    assert "pages-per-prompt: max" in together.run_yaml
    for flag in ("--frames=3", "--window-s=3", "--start-column=a", "--tokens-per-row=99"):
        with pytest.raises(SystemExit):
            options(parse_documents.make_parser, flag)


def test_the_options_of_long_videos_make_time_windows():
    given = ["--window-s", "30", "--window-overlap-s", "5", "--merge", "--merge-prompt", "Sum up."]

    windows = pipeline_config(options(caption_videos.make_parser, *given)).instructions.windows

    assert windows == TimeWindows(length_s=30.0, overlap_s=5.0, merge="Sum up.")
    with pytest.raises(ValueError, match="need --window-s"):
        pipeline_config(options(caption_videos.make_parser, "--merge"))
    with pytest.raises(ValueError, match="may overlap by 0 to 15 s, got 20"):
        pipeline_config(options(caption_videos.make_parser, *given[:2], "--window-overlap-s", "20"))
    assert pipeline_config(options(caption_videos.make_parser)).instructions.windows is None
