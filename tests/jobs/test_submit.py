"""`ray job submit` on a real head, in the two forms that docs/clusters-and-gpus.md gives."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.clips import make_video, real_clips
from tests.jobs.ray_head import RayHead, ray_head  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clips(tmp_path):
    """Three real clips as path, bytes and both, a corrupt file and a missing one."""
    paths = [str(path) for path in list(real_clips().values())[:3]]
    videos = [
        {"bytes": None, "path": paths[0]},
        {"bytes": Path(paths[1]).read_bytes(), "path": None},
        {"bytes": Path(paths[2]).read_bytes(), "path": "its name.mp4"},
        {"bytes": make_video()[:500], "path": None},
        {"bytes": None, "path": str(tmp_path / "missing.mp4")},
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"key": list("abcde"), "video": pa.array(videos, kind)})
    pq.write_table(table, tmp_path / "clips.parquet")
    return tmp_path / "clips.parquet"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(["--working-dir", "."], id="with the repository"),
        pytest.param([], id="where the head was started"),
    ],
)
def test_a_submitted_job_succeeds(form, clips, ray_head: RayHead):  # noqa: F811
    output = clips.parent / "captions"
    job = [
        *("jobs/caption_videos.py", "--input", str(clips), "--output", str(output)),
        *("--allow-folder", str(next(iter(real_clips().values())).parent)),
        *("--model", "demo", "--id-column", "key", "--max-tokens", "8", "--frame-tokens", "16"),
    ]

    done = ray_head.run("ray", "job", "submit", *form, "--", *job, cwd=ROOT, timeout_s=300)

    assert done.returncode == 0, done.stdout
    assert "succeeded" in done.stdout
    assert "5 rows in = 5 written: 2 error, " in done.stdout
    assert "core_worker" not in done.stdout, done.stdout  # lines of Ray that look like a failure
    rows = pq.read_table(output).sort_by("row_id").to_pylist()
    assert [row["row_id"] for row in rows] == list("abcde")
    assert [row["error_code"] for row in rows] == [
        None,
        None,
        None,
        "media_corrupt",
        "media_missing",
    ]
    assert all(len(row["frame_times_s"]) == 8 for row in rows[:3])
    assert rows[2]["video"] == {"path": "its name.mp4"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_submitted_job_refuses_paths_that_would_vanish(clips, ray_head: RayHead):  # noqa: F811
    job = ["jobs/caption_videos.py", "--input", str(clips), "--output", "out", "--model", "demo"]

    done = ray_head.run("ray", "job", "submit", "--working-dir", ".", "--", *job, cwd=ROOT)

    assert done.returncode == 1
    assert "--output out is relative" in done.stdout
    assert "give an absolute path" in done.stdout
    assert "Traceback" not in done.stdout
