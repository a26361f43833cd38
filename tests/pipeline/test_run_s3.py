"""A run whose input, media and output are on an object store."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.engine.config import EngineConfig
from model.engine.sequence import SamplingParams
from pipeline.config import PipelineConfig
from pipeline.media.frame_sampling import FrameSampling
from pipeline.output.lock import lock_output
from pipeline.output.store import open_store
from pipeline.prompts.instructions import Instructions
from pipeline.schema import ErrorCode
from tests.clips import make_video
from tests.conftest import EVERYWHERE_SLOWLY
from tests.tiny import tiny_checkpoint


@pytest.fixture
def config(tmp_path, bucket):
    """Four clips in a bucket, one of them missing."""
    tiny_checkpoint(tmp_path)
    s3 = bucket.filesystem
    for number in (0, 1, 2):
        with s3.open_output_stream(f"{bucket.name}/in/{number}.mp4") as stream:
            stream.write(make_video(numbers=range(4)))
    table = pa.table({"video": [f"{number}.mp4" for number in range(4)], "n": range(4)})
    pq.write_table(table, f"{bucket.name}/in/clips.parquet", filesystem=s3, row_group_size=2)
    return PipelineConfig(
        input=bucket.uri("in"),
        output=bucket.uri("out"),
        checkpoint=tmp_path,
        instructions=Instructions(frames=FrameSampling(num_frames=2), max_frame_tokens=4),
        sampling=SamplingParams(max_tokens=2),
        engine=EngineConfig(cache_gib=0.01),
        rows_per_part=3,
    )


@pytest.mark.parametrize("carry_out", EVERYWHERE_SLOWLY, indirect=True)
def test_a_run_on_an_object_store_is_written_continued_and_retried(config, bucket, carry_out):
    carry_out(replace(config, limit=3))
    report = carry_out(config)

    assert (report.rows_done_before, report.rows_written) == (3, 1)
    assert report.error_codes == {"media_missing": 1}

    with bucket.filesystem.open_output_stream(f"{bucket.name}/in/3.mp4") as stream:
        stream.write(make_video(numbers=range(4)))
    again = replace(config, retry_failed=(ErrorCode.MEDIA_MISSING,))
    carry_out(again)

    rows = pq.read_table(f"{bucket.name}/out", filesystem=bucket.filesystem).sort_by("n")
    assert rows["row_id"].to_pylist() == [f"clips.parquet#{n}" for n in range(4)]
    assert rows["attempts"].to_pylist() == [1, 1, 1, 2]
    assert "error" not in rows["status"].to_pylist()
    with lock_output(open_store(config.output)):
        pass  # free
