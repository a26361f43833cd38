"""The pipeline without a model, in small."""

import json

import av
import pytest
from PIL import Image

from jobs.bench import pipeline


def last_line(capfd):
    return json.loads(capfd.readouterr().out.splitlines()[-1])


def test_a_padded_clip_is_still_that_clip(tmp_path):
    clip = pipeline.small_clip(num_frames=3, width_px=64, height_px=64)
    (tmp_path / "x.mp4").write_bytes(pipeline.padded(clip, 100_000))

    assert (tmp_path / "x.mp4").stat().st_size == 100_000
    with av.open(str(tmp_path / "x.mp4")) as file:
        assert len(list(file.decode(video=0))) == 3


def test_a_resume_is_measured(capfd):
    assert pipeline.main(["resume", "--rows", "300"]) == 0

    assert last_line(capfd)["resume"]["rows"] == 300


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
