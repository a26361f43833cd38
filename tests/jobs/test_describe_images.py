"""Images of all kinds are described, each row once; what is wrong with one is its row's error."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import describe_images, review
from jobs.cli import config_file
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


def encoded(kind, size=(60, 30), **more):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, kind, **more)
    return file.getvalue()


def animated():
    shades = [Image.new("RGB", (40, 40), (shade, 0, 0)) for shade in (0, 80, 160, 240)]
    file = io.BytesIO()
    shades[0].save(file, "GIF", save_all=True, append_images=shades[1:], duration=500)
    return file.getvalue()


def test_images_are_described_upright_together_and_by_their_frames(tmp_path, checkpoint, capfd):
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn clockwise
    (tmp_path / "photo.jpg").write_bytes(encoded("JPEG", exif=turned.tobytes()))
    rows = [
        [{"bytes": None, "path": "photo.jpg"}],
        [{"bytes": encoded("PNG"), "path": None}, {"bytes": encoded("WEBP"), "path": None}],
        [{"bytes": animated(), "path": None}],
        [{"bytes": encoded("PNG")[:40], "path": None}],
        [],
        None,
    ]
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"key": list("abcdef"), "image": pa.array(rows, kind)})
    pq.write_table(table, tmp_path / "photos.parquet")
    output = tmp_path / "described"

    code = describe_images.main(
        [
            *("--input", str(tmp_path / "photos.parquet"), "--output", str(output)),
            *("--model", str(checkpoint), "--id-column", "key", "--max-tokens", "4"),
            *("--inline", "--frames", "2"),
        ]
    )

    printed = capfd.readouterr()
    assert code == 0, printed.err
    a, b, c, *bad = pq.read_table(output).sort_by("row_id").to_pylist()
    assert (a["media_width"], a["media_height"], a["media_rotation"]) == (30, 60, 90)
    assert a["frame_times_s"] == [0.0]
    assert b["frame_times_s"] == [0.0, 0.0]
    assert b["num_visual_tokens"] == 2 * a["num_visual_tokens"]
    assert c["frame_times_s"] == [0.5, 1.5]
    assert c["media_duration_s"] == 2.0
    assert all(row["num_generated_tokens"] for row in (a, b, c))
    codes = ["media_corrupt", "media_null", "media_null"]
    assert [row["error_code"] for row in bad] == codes

    assert review.main([str(output), "--page", str(tmp_path / "page.html")]) == 0
    assert "without frames" not in capfd.readouterr().out


def test_the_background_is_a_part_of_the_recipe(tmp_path, checkpoint, capfd):
    file = io.BytesIO()
    Image.new("RGBA", (60, 30)).save(file, "PNG")
    pq.write_table(pa.table({"image": [file.getvalue()]}), tmp_path / "x.parquet")
    output = str(tmp_path / "o")
    arguments = [
        *("--input", str(tmp_path / "x.parquet"), "--output", output, "--model", str(checkpoint)),
        *("--max-tokens", "4", "--inline"),
    ]

    assert describe_images.main([*arguments, "--background", "navy"]) == 0
    assert describe_images.main(["--config", f"{output}/_run.yaml", "--inline"]) == 0
    capfd.readouterr()
    assert describe_images.main(arguments) == 2
    assert 'background: "#000080" -> "#ffffff"' in capfd.readouterr().err


def test_images_keep_their_size_and_have_no_times():
    required = ["--input", "a.parquet", "--output", "o", "--model", "demo"]

    options = config_file.parse(describe_images.make_parser, required)

    assert options.frame_tokens is None
    assert options.timestamps == "none"
    assert options.video_column == "image"
    assert options.prompt == "Describe this image in detail."
    changed = config_file.parse(describe_images.make_parser, [*required, "--image-column", "x"])
    assert changed.video_column == "x"
    assert "image-column: x" in changed.run_yaml
    assert "frame-tokens: max" in changed.run_yaml


def test_a_missing_column_is_refused_in_one_line(tmp_path, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.monitor.announce._SLOW_S", 60.0)  # a busy machine is no news
    pq.write_table(pa.table({"photo": ["a.png"]}), tmp_path / "x.parquet")

    code = describe_images.main(
        [
            *("--input", str(tmp_path / "x.parquet"), "--output", str(tmp_path / "o")),
            *("--model", str(checkpoint)),
        ]
    )

    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("describe_images: error: the input has no ")
    assert "'image'" in err
    assert err.count("\n") == 1
