import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.demo.clips import SCHEMA, encode, write_clips
from jobs.demo.contact_sheet import SheetRow, write_contact_sheet
from jobs.demo.language import read_caption
from jobs.demo.scenes import Difficulty
from pipeline.media.frame_sampling import FrameSampling
from tests.pipeline.decoding import decode_video

ONE_SHAPE = Difficulty(num_shapes=(1.0, 0.0, 0.0), small=0.0, event=0.0, text=0.0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Twenty clips as rows."""
    path = tmp_path_factory.mktemp("clips") / "new folder" / "clips.parquet"
    assert write_clips(path, 20, seed=3) == path
    return pq.read_table(path).to_pylist()


def test_the_file_has_the_schema_and_small_row_groups(tmp_path):
    file = pq.ParquetFile(write_clips(tmp_path / "clips.parquet", 17, seed=0))
    with file:
        assert file.schema_arrow == SCHEMA
        assert [file.metadata.row_group(index).num_rows for index in range(2)] == [16, 1]


def test_clips_decode_and_are_as_long_as_they_say(clips):
    assert [row["id"] for row in clips[:2]] == ["clip-0000", "clip-0001"]
    sizes = set()
    for row in clips:
        frames = decode_video(row["video"], FrameSampling(num_frames=1000))
        sizes.add(frames.rgb.shape[1:3])
        step_s = frames.timestamps_s[1]
        assert len(frames.rgb) * step_s == pytest.approx(row["duration_s"])
        assert 8 <= round(1 / step_s) <= 12
        assert 1.5 <= row["duration_s"] <= 4.1
    assert len(sizes) >= 3


def test_truths_can_be_read_back(clips):
    for row in clips:
        seen = read_caption(row["truth"])
        assert len(seen.shapes) == row["num_shapes"]
        assert all(all(shape[1:]) for shape in seen.shapes)
        assert seen.background == row["background"]
    assert len({row["truth"] for row in clips}) > 15


def test_clips_depend_on_the_seed_and_their_number_alone(tmp_path, clips):
    def written(num_clips: int, seed: int):
        path = write_clips(tmp_path / f"{num_clips}-{seed}.parquet", num_clips, seed)
        return pq.read_table(path).to_pylist()

    assert written(3, 3) == clips[:3]
    assert written(3, 4) != clips[:3]


def test_clips_do_not_depend_on_what_memory_held_before(tmp_path, clips):
    """glibc fills what it hands out, and what it takes back, with what MALLOC_PERTURB_ says."""
    script = (
        "import sys; from pathlib import Path; from jobs.demo.clips import write_clips; "
        "write_clips(Path(sys.argv[1]), 1, 3)"
    )
    for number in ("1", "255"):
        path = tmp_path / f"{number}.parquet"
        command = [sys.executable, "-c", script, str(path)]
        subprocess.run(command, env=os.environ | {"MALLOC_PERTURB_": number}, check=True)
        assert pq.read_table(path).to_pylist() == clips[:1]


def test_a_moving_shape_moves_as_the_truth_says(tmp_path):
    """The centre of what is not background goes left, right, up or down."""
    path = write_clips(tmp_path / "clips.parquet", 40, 0, ONE_SHAPE)
    num_checked = 0
    for row in pq.read_table(path).to_pylist():
        ((_, _, _, motion),) = read_caption(row["truth"]).shapes
        frames = decode_video(row["video"], FrameSampling(num_frames=2)).rgb.astype(int)
        is_shape = abs(frames - frames[:, :1, :1]).sum(axis=3) > 90  # the corner is background
        centres = [np.argwhere(mask).mean(axis=0) for mask in is_shape]
        down, right = centres[1] - centres[0]
        expected = {
            "left": right < -5,
            "right": right > 5,
            "up": down < -5,
            "down": down > 5,
        }
        for word in motion.split():
            if word in expected:
                assert expected[word], row["truth"]
                num_checked += 1
        if motion == "still":
            assert abs(down) + abs(right) < 1
    assert num_checked > 20


@pytest.mark.parametrize(("num_clips", "seed"), [(0, 0), (2**20 + 1, 0), (1, -1), (1, 2**21)])
def test_numbers_out_of_range_are_refused(tmp_path, num_clips, seed):
    with pytest.raises(ValueError, match="must be from"):
        write_clips(tmp_path / "clips.parquet", num_clips, seed)


def test_encoding_keeps_the_picture():
    frames = np.full((10, 56, 84, 3), (200, 30, 60), np.uint8)
    decoded = decode_video(encode(frames, 10), FrameSampling(num_frames=10)).rgb
    assert abs(decoded.astype(int) - frames).max() < 8


def row(**changes) -> SheetRow:
    options = {
        "frames": np.full((3, 40, 60, 3), 90, np.uint8),
        "times_s": np.arange(3.0),
        "title": "clip",
        "caption": "A red circle moves left.",
        **changes,
    }
    return SheetRow(**options)


def test_a_contact_sheet_grows_with_its_rows(tmp_path):
    sizes = []
    for count in (1, 2):
        write_contact_sheet(tmp_path / "new" / "sheet.png", [row(truth="It does.")] * count)
        with Image.open(tmp_path / "new" / "sheet.png") as sheet:
            sizes.append(sheet.size)
            assert (90, 90, 90) in {colour for _, colour in sheet.getcolors(1 << 20) or []}
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] < sizes[1][1]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"caption": ""}, id="no caption"),
        pytest.param({"caption": "\x00\x1b[31m\u202e\ud800\n\t\u4f60\u597d \U0001f600"}, id="odd"),
        pytest.param({"caption": "word " * 10_000}, id="long"),
        pytest.param({"caption": "w" * 1_000_000}, id="one long word"),
        pytest.param({"title": "t" * 10_000, "truth": "u" * 10_000}, id="long title and truth"),
        pytest.param(
            {"frames": np.zeros((0, 1, 1, 3), np.uint8), "times_s": np.zeros(0)}, id="no frames"
        ),
        pytest.param(
            {"frames": np.zeros((1, 1, 500, 3), np.uint8), "times_s": np.zeros(1)}, id="flat"
        ),
        pytest.param(
            {"frames": np.zeros((64, 500, 1, 3), np.uint8), "times_s": np.arange(64.0)}, id="thin"
        ),
    ],
)
def test_odd_rows_can_be_drawn(tmp_path, changes):
    write_contact_sheet(tmp_path / "sheet.png", [row(**changes)])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert 100 < sheet.height < 400


def test_rows_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 times do not fit 3 frames"):
        row(times_s=np.arange(2.0))
    with pytest.raises(ValueError, match=r"frames must be \[I, H, W, 3\]"):
        row(frames=np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="got none"):
        write_contact_sheet(tmp_path / "sheet.png", [])
