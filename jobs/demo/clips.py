"""Write the input of the demo: short H.264 clips of moving shapes with their right captions.

The clips come from the test split of `scenes`, which training never uses. A clip depends only on
the seed and its own number, so a longer file begins with the clips of a shorter one.
"""

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.stream import VideoStream
from numpy.typing import NDArray

from jobs.demo.language import caption
from jobs.demo.scenes import SPLITS, Difficulty, draw, random_scene
from model.inputs.processor import Item

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("video", pa.large_binary(), nullable=False),
        pa.field("truth", pa.string(), nullable=False),
        pa.field("num_shapes", pa.int32(), nullable=False),
        pa.field("background", pa.string(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
    ]
)
SIZES = ((224, 168), (168, 224), (196, 196), (252, 140))  # width, height
_RATES = (8, 10, 12)  # frames per second
_CLIPS_PER_SEED = 2**20
_ROW_GROUP_CLIPS = 16
_X264_OPTIONS = {
    "crf": "18",
    "preset": "veryfast",
    # The macroblock tree of x264 reads memory that it never wrote, so its output varies.
    "x264-params": "mbtree=0",
}


def write_clips(
    output: Path, num_clips: int, seed: int, difficulty: Difficulty | None = None
) -> Path:
    """Write `num_clips` clips to the Parquet file `output` and return it.

    Raises:
        ValueError: the number or the seed is out of range.
    """
    if not 1 <= num_clips <= _CLIPS_PER_SEED:
        raise ValueError(f"num_clips must be from 1 to {_CLIPS_PER_SEED}, got {num_clips}")
    seeds = SPLITS["test"]
    if not 0 <= seed < len(seeds) // _CLIPS_PER_SEED:
        raise ValueError(f"seed must be from 0 to {len(seeds) // _CLIPS_PER_SEED - 1}, got {seed}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(output, SCHEMA, compression="none", use_dictionary=False) as writer:
        first = seeds[seed * _CLIPS_PER_SEED]
        for start in range(0, num_clips, _ROW_GROUP_CLIPS):
            numbers = range(start, min(start + _ROW_GROUP_CLIPS, num_clips))
            rows = [_clip(number, first + number, difficulty) for number in numbers]
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    return output


def encode(frames: Iterable[NDArray[np.uint8]], rate: int, **options: str) -> bytes:
    """Encode frames as H.264 in MP4; the same frames always give the same bytes.

    Args:
        frames: [H, W, 3] each, all of one size with even sides.
        rate: frames per second.
        options: settings of x264 that replace the usual ones.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=rate)
        assert isinstance(stream, VideoStream)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes depend on the number of threads
        stream.codec_context.options = {**_X264_OPTIONS, **options}
        for number, rgb in enumerate(frames):
            if number == 0:
                stream.height, stream.width = rgb.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def _clip(number: int, seed: int, difficulty: Difficulty | None) -> dict[str, Any]:
    """Make one row of SCHEMA."""
    scene = random_scene(seed, difficulty)
    rng = np.random.default_rng((seed, 2))
    width_px, height_px = SIZES[rng.integers(len(SIZES))]
    rate = _RATES[rng.integers(len(_RATES))]
    num_frames = round(scene.duration_s * rate)
    middles = (np.arange(num_frames) + 0.5) / num_frames
    frames = draw(scene, middles, width_px, height_px)
    return {
        "id": f"clip-{number:04d}",
        "video": encode(frames, rate),
        "truth": caption(scene),
        "num_shapes": len(scene.shapes),
        "background": scene.background,
        "duration_s": num_frames / rate,
    }


def with_timestamps(
    frames: Sequence[NDArray[np.uint8]], times_s: NDArray[np.float64], style: str
) -> list[Item]:
    """Put the time of each frame before it, in the given style."""
    content: list[Item] = []
    for frame, time_s in zip(frames, times_s.tolist(), strict=True):
        if style == "seconds":
            content.append(f"{time_s:.1f}s ")
        elif style == "clock":
            content.append(f"[{int(time_s) // 60:02d}:{int(time_s) % 60:02d}] ")
        content.append(frame)
    return content
