"""The pipeline without a model, in small."""

import json

import av
import pytest
from PIL import Image

from jobs.bench import pipeline
from jobs.bench.flow.start import parts_of


def last_line(capfd):
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def test_a_padded_clip_is_still_that_clip(tmp_path):
    clip = pipeline.small_clip(num_frames=3, width_px=64, height_px=64)
    (tmp_path / "x.mp4").write_bytes(pipeline.padded(clip, 100_000))

    assert (tmp_path / "x.mp4").stat().st_size == 100_000
    with av.open(str(tmp_path / "x.mp4")) as file:
        assert len(list(file.decode(video=0))) == 3


@pytest.mark.slow  # each case has a process of its own
def test_planning_is_measured_for_new_outputs_and_half_done_ones(capfd):
    assert pipeline.main(["planning", "--rows", "2100"]) == 0

    found = last_line(capfd)["planning"]
    assert found["rows"] == 2100
    assert found["files_of_1000_ids_new"]["todo"] == 2100
    assert found["files_of_1000_ids_half"]["todo"] == 1050
    assert found["one_file_numbered_half"]["todo"] == 1050


def test_the_parts_of_a_start_end_with_their_lines_and_add_up_to_the_whole():
    lines = [
        (0.5, "checking the checkpoint and the input"),
        (2.0, "3 of 3 rows to do; starting or joining Ray"),
        (6.0, "waiting for an engine to load"),
        (9.0, "waiting for the first row to be read, prepared and answered"),
        (9.5, "the first row came 0.5 s later"),
        (10.0, "3/3 rows; 2 rows/s, 30 tokens/s; engine busy 50%"),
        (11.0, "3 rows in = 3 written: 3 ok"),
    ]

    assert parts_of(lines, 12.0) == {
        "imports_and_checks": 2.0,
        "ray_start": 4.0,
        "groups_ready": 3.0,
        "first_row": 0.5,
        "last_row": 0.5,
        "shutdown": 2.0,
    }


@pytest.mark.slow
@pytest.mark.ray
def test_a_start_is_measured_beside_ray_alone(capfd):
    assert pipeline.main(["start"]) == 0

    found = last_line(capfd)
    assert found["seconds"] > 0
    assert found["ray_s"] > 0
    assert all(seconds > 0 for name, seconds in found["where"].items() if name != "last_row")
    assert sum(found["where"].values()) == pytest.approx(found["seconds"], abs=0.5)


@pytest.mark.slow
@pytest.mark.ray
def test_a_slow_engine_is_watched(capfd, tmp_path, ray_local):
    chart = tmp_path / "flow.png"

    arguments = ["slow", "--rows", "12", "--rows-per-s", "4", "--chart", str(chart)]
    assert pipeline.main(arguments) == 0

    found = last_line(capfd)["slow"]
    assert found["rows"] == 12
    assert found["store_mb_most"] > 0
    assert found["spilled_mb"] == 0
    assert all(found["mb_second_half"][kind] > 0 for kind in ("object store", "rank", "decoder"))
    with Image.open(chart) as picture:
        assert picture.size == (900, 420)
