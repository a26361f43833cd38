"""Measure how fast frames are decoded from videos, compared with other ways to get the same frames.

    python -m jobs.bench.media                   # some two minutes on two cores
    python -m jobs.bench.media --only 10s,prepare

The frames are 16, evenly over H.264 clips of 1280x720 at 30 frames per second (groups of 250, with
B pictures), 10 s and 10 min long, resized to 448 pixels. All ways use one thread:

  ours         `pipeline.media.video.decode_video`
  sequential   PyAV, decoding from the start to the last frame wanted
  seeking      PyAV, with a seek for each frame
  decord       `VideoReader.get_batch`, if decord is installed

`identical` tells whether our frames equal those of sequential decoding, byte for byte. `prepare`
compares the rows/s of the whole stage (decoding process, patches, template) and of the decoding
process alone with decoding in this process. The ways run in turns; the median counts. The last line
of the output is one JSON object.
"""

import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import av
import numpy as np
import pyarrow as pa
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from jobs.bench.command import bench_parser, print_json, print_value
from jobs.bench.measure.turns import take_turns, timed
from jobs.cli.checkpoint import find_checkpoint
from jobs.cli.options import names_among
from jobs.demo.clips import encode
from model.inputs.processor import Processor
from pipeline.media.display import FrameRequest
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.media.video import decode_video
from pipeline.prompts.frame_view import FitFrames
from pipeline.prompts.instructions import Instructions
from pipeline.prompts.prepare import Prepare
from pipeline.schema import InputColumns, check_input

_RATE = 30
_SIZE = (1280, 720)
_SMALL = (448, 252)
_SIXTEEN = FrameSampling(num_frames=16)
_PARTS = ("10s", "10min", "prepare")
_SECOND_S = {"10s": 10, "10min": 600}
_REPEATS = {"10s": 7, "10min": 2}  # rounds, fewer for the long clip
_PREPARED_ROWS = 12

_Way = Callable[[Path], NDArray[np.uint8] | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts, print a line for each number and a JSON object; return the exit code."""
    parser = bench_parser("jobs.bench.media", __doc__)
    parser.add_argument(
        "--only",
        type=names_among(_PARTS),
        default=_PARTS,
        metavar="A,B",
        help=f"measure only these parts of {', '.join(_PARTS)}",
    )
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for part in options.only:
            clip = "10s" if part == "prepare" else part
            path = Path(folder, f"{clip}.mp4")
            if not path.exists():
                print(f"making {path.name} ...", flush=True)
                make_clip(path, _SECOND_S[clip])
            if part == "prepare":
                found["prepare"] = measure_prepare(path)
            else:
                found[f"uniform16_{part}"] = measure_ways(path, _REPEATS[part])
    print_json(found)
    return 0


def make_clip(path: Path, duration_s: int) -> None:
    """Write a clip that repeats its first 50 s, so that long ones are made quickly."""
    frames = _drifting_frames(min(duration_s, 50) * _RATE)
    once = encode(frames, _RATE, crf="26", g="250", bf="3")
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        target, offset = None, 0
        for _ in range(-(-duration_s // 50)):
            with av.open(io.BytesIO(once), mode="r") as source:
                stream = source.streams.video[0]
                target = target or output.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        packet.stream = target
                        output.mux(packet)
                offset += stream.duration or 0


def _drifting_frames(num_frames: int) -> Iterator[NDArray[np.uint8]]:
    """Draw a textured picture that drifts, and that a cut replaces by another every 4 seconds."""
    random = np.random.default_rng(0)
    coarse = random.integers(30, 220, (8, 45, 80, 3), dtype=np.uint8)
    scenes = [np.kron(each, np.ones((16, 16, 1), np.uint8)) for each in coarse]
    for number in range(num_frames):
        rgb = np.roll(scenes[number // 120 % len(scenes)], (number, 3 * number), axis=(0, 1))
        rgb[number % 16 :: 16, :, 0] ^= 8
        yield rgb


def measure_ways(path: Path, num_repeats: int) -> dict[str, Any]:
    """Measure the seconds of each way, and whether ours gives the frames of sequential decoding."""
    ways: dict[str, _Way] = {"ours": ours, "sequential": sequential, "seeking": seeking}
    if importlib.util.find_spec("decord"):
        ways["decord"] = with_decord
    else:
        print("decord is not installed and left out; install it with `pip install decord`")
    turns = take_turns(
        {name: partial(timed, partial(way, path)) for name, way in ways.items()}, num_repeats
    )
    found: dict[str, Any] = {"decord_s": None}
    for name in ways:
        found[f"{name}_s"] = seconds = turns.typical(name)
        ratio = turns.quotient(name, "ours")
        print_value(f"{path.stem} {name}", f"{seconds:8.3f} s   {ratio:6.2f} of ours")
    found["identical"] = bool(np.array_equal(ours(path), sequential(path)))
    print_value(f"{path.stem} identical to sequential", found["identical"])
    return found


def ours(path: Path) -> NDArray[np.uint8]:
    """Decode with the pipeline, which plans which packets it needs."""
    with path.open("rb") as file:
        request = FrameRequest(sampling=_SIXTEEN, fit=lambda *_: _SMALL)
        return decode_video(file, [request])[0].media[0].rgb


def sequential(path: Path) -> NDArray[np.uint8]:
    """Decode up to the last wanted frame, and resize the wanted ones."""
    reformatter, found = VideoReformatter(), []
    with av.open(str(path)) as container:
        stream = _one_thread(container.streams.video[0])
        wanted = set(_wanted(stream))
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                found.append(_small(reformatter, frame))
            if len(found) == len(wanted):
                break
    return np.array(found)


def seeking(path: Path) -> NDArray[np.uint8]:
    """Seek to each frame, and decode up to it."""
    reformatter, found = VideoReformatter(), []
    with av.open(str(path)) as container:
        stream = _one_thread(container.streams.video[0])
        assert stream.time_base is not None
        for number in _wanted(stream):
            pts = round(number / _RATE / stream.time_base)
            container.seek(pts, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts >= pts:
                    found.append(_small(reformatter, frame))
                    break
    return np.array(found)


def with_decord(path: Path) -> None:
    """Decode with decord, which resizes in its own way, so its frames are not compared."""
    decord = importlib.import_module("decord")
    reader = decord.VideoReader(str(path), width=_SMALL[0], height=_SMALL[1], num_threads=1)
    numbers = ((np.arange(16) + 0.5) * len(reader) / 16).astype(int)
    reader.get_batch(numbers.tolist()).asnumpy()


def measure_prepare(path: Path) -> dict[str, float]:
    """Measure rows/s of the prepare stage and of decoding in this process, in turns."""
    processor = Processor.from_checkpoint(find_checkpoint("demo"))
    # The limit of the demo is far smaller.
    published = replace(processor.config.image, in_token_limit=4096)
    processor.config = replace(processor.config, image=published)
    rows = pa.table({"row_id": ["0"], "video": [str(path)]})
    row_schema = check_input(rows.schema.remove(0), InputColumns())
    instructions = Instructions(frames=_SIXTEEN, max_frame_tokens=144)  # 448 x 252 pixels

    def opened(media: object) -> BinaryIO:
        return Path(str(media)).open("rb")

    prepare = Prepare(processor, row_schema, instructions, opened)
    decoder = SandboxedDecoder()
    fit = FitFrames(image=processor.config.image, max_frame_tokens=144)

    def in_sandbox() -> None:
        with path.open("rb") as file:
            decoder.decode(file, [FrameRequest(sampling=_SIXTEEN, fit=fit)])

    ways: Mapping[str, Callable[[], object]] = {
        "bare": lambda: ours(path),
        "process": in_sandbox,
        "stage": lambda: prepare(rows),
    }
    turns = take_turns({name: partial(timed, way) for name, way in ways.items()}, _PREPARED_ROWS)
    prepare.close()
    decoder.close()
    found = {f"{name}_rows_per_s": 1 / turns.typical(name) for name in ways}
    found |= {f"{name}_of_bare": turns.quotient("bare", name) for name in ("process", "stage")}
    for name, value in found.items():
        print_value(f"prepare {name}", f"{value:8.3f}")
    return found


def _wanted(stream: VideoStream) -> list[int]:
    return ((np.arange(16) + 0.5) * stream.frames / 16).astype(int).tolist()


def _one_thread(stream: VideoStream) -> VideoStream:
    stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
    return stream


def _small(reformatter: VideoReformatter, frame: av.VideoFrame) -> NDArray[Any]:
    converted = reformatter.reformat(frame, *_SMALL, "rgb24", interpolation="BICUBIC", threads=1)
    return converted.to_ndarray()


if __name__ == "__main__":
    sys.exit(main())
