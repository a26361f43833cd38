"""Clips of all containers that are read, each with properties drawn from a seed."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.pipeline.media.parity.ffmpeg import run

# The extension of a container, what ffmpeg calls it, and the codecs that it holds here.
CONTAINERS = {
    "mp4": ("mp4", "libx264 libx265 mpeg4 libvpx-vp9 libsvtav1 mjpeg mpeg2video"),
    "mov": ("mov", "libx264 libx265 prores_ks dnxhd mjpeg mpeg4"),
    "mkv": ("matroska", "libx264 libx265 libvpx libvpx-vp9 ffv1 mpeg4 mpeg2video libtheora mjpeg"),
    "webm": ("webm", "libvpx libvpx-vp9 libsvtav1"),
    "ts": ("mpegts", "libx264 libx265 mpeg2video mpeg1video mpeg4"),
    "flv": ("flv", "libx264 flv"),
    "avi": ("avi", "mpeg4 mjpeg libx264 ffv1"),
    "ogv": ("ogg", "libtheora libvpx"),
    "mpg": ("mpeg", "mpeg1video mpeg2video"),
    "wmv": ("asf", "mpeg4 libx264 mjpeg"),
    "3gp": ("3gp", "mpeg4 libx264"),
}
_RATES = (10, 12.5, 15, "24000/1001", 25, "30000/1001", 50)
_MPEG_RATES = (24, 25, "30000/1001", 50)  # MPEG-1 and MPEG-2 know no others
_ASPECTS = ("1/1", "1/1", "1/1", "4/3", "8/9", "16/11", "1/2")
_OPTIONS = {
    "libx264": "-preset veryfast -crf 16",
    "libx265": "-preset ultrafast -crf 16 -x265-params log-level=none:pools=1:frame-threads=1",
    "libvpx": "-b:v 800k -deadline realtime -cpu-used 8 -auto-alt-ref 1 -lag-in-frames 8",
    "libvpx-vp9": "-b:v 800k -deadline realtime -cpu-used 8",
    "libsvtav1": "-preset 12 -crf 20 -svtav1-params lp=1",
    "prores_ks": "-profile:v 2",
    "dnxhd": "-profile:v dnxhr_sq",
}
_FORMATS = {
    "libx264": ("yuv420p", "yuv420p", "yuv422p", "yuv444p", "yuv420p10le"),
    "libx265": ("yuv420p", "yuv420p", "yuv420p10le"),
    "libvpx-vp9": ("yuv420p", "yuv420p", "yuv444p"),
    "libsvtav1": ("yuv420p", "yuv420p10le"),
    "prores_ks": ("yuv422p10le",),
    "dnxhd": ("yuv422p",),
    "mjpeg": ("yuvj420p", "yuvj422p", "yuvj444p"),
    "ffv1": ("yuv420p", "yuv444p", "bgr0", "yuv422p10le"),
    "libtheora": ("yuv420p", "yuv444p"),
}
_ODD = ("ffv1", "mjpeg", "libvpx", "libvpx-vp9", "libtheora", "mpeg4", "flv", "mpeg1video")
_NO_TIMES = ("avi", "ogv", "mpg")  # no frame of these may be missing in encoding
_TURNED = ("mp4", "mov", "mkv")
_JOINED = ("ts", "flv", "mpg")
_CROP_BYTES = ((b"\x54\xcc", 0), (b"\x54\xbb", 1), (b"\x54\xdd", 2), (b"\x54\xaa", 3))


@dataclass
class Clip:
    """A generated file, and in words how it was made."""

    path: Path
    words: list[str] = field(default_factory=list)
    is_joined: bool = False

    @property
    def description(self) -> str:
        return ", ".join(self.words)


def make_clip(container: str, seed: int, folder: Path) -> Clip:
    """Make the clip of a container and a seed; the same one each time."""
    random = np.random.default_rng([seed, *container.encode()])
    clip = Clip(folder / f"{seed}.{container}", [container, f"seed {seed}"])
    _encode(clip, container, random)
    if container in _TURNED and random.random() < 0.45:
        _turn(clip, container, random)
    if container in ("mp4", "mov") and random.random() < 0.25:
        _cut_start(clip, container, random)
    if container in ("mp4", "mov", "3gp") and random.random() < 0.25:
        _crop_boxes(clip, random)
    if container == "mkv" and random.random() < 0.25:
        _crop_matroska(clip, random)
    if container in _JOINED and random.random() < 0.25:
        _join(clip, container, random)
    return clip


def _encode(clip: Clip, container: str, random: np.random.Generator) -> None:
    name, codecs = CONTAINERS[container]
    codec = str(random.choice(codecs.split()))
    is_mpeg = codec in ("mpeg1video", "mpeg2video")
    rates = _MPEG_RATES if is_mpeg else _RATES
    rate = rates[random.integers(len(rates))]
    width, height = (int(side) for side in random.integers(24, 150, 2))
    if codec not in _ODD:
        width, height = width // 2 * 2, height // 2 * 2
    if codec == "dnxhd":
        width, height = 256, 120
    if codec in ("libsvtav1", "libx265"):  # smaller ones are refused, or crash the encoder
        width, height = max(width, 64), max(height, 64)
    num_frames = int(random.integers(1, 45))
    filters = [f"setsar={random.choice(_ASPECTS)}"]
    words = [codec, f"{width}x{height}", f"{num_frames} frames at {rate}", filters[0]]
    options = [*_OPTIONS.get(codec, "-q:v 2").split(), "-c:v", codec]
    formats = _FORMATS.get(codec, ("yuv420p",))
    pixel_format = formats[random.integers(len(formats))]
    options += ["-pix_fmt", pixel_format, "-g", str(random.integers(1, 16)), "-strict", "-2"]
    words.append(pixel_format)
    if codec in ("libx264", "mpeg4", "mpeg2video", "mpeg1video") and container != "3gp":
        options += ["-bf", str(random.integers(0, 4))]
        words.append(f"{options[-1]} B frames at most")
    if codec == "libx264" and random.random() < 0.2:
        options += ["-x264-params", "open-gop=1:bframes=3"]
        words.append("open groups")
    is_field = codec == "libx264" and pixel_format == "yuv420p" and height % 4 == 0
    if is_field and random.random() < 0.3:
        filters.append("setfield=tff")
        options += ["-flags", "+ilme+ildct"]
        words.append("interlaced")
    if container not in _NO_TIMES and not is_mpeg and random.random() < 0.3:
        filters.append(f"select='gt(mod(n*{random.integers(2, 7)},7),2)+eq(n,0)'")
        words.append("variable rate")
    if random.random() < 0.2 and codec in ("libx264", "libx265", "libvpx-vp9"):
        filters.append("setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709")
        words.append("bt709")
    sound, before = _sound(container, random, words)
    if container not in ("avi", "ogv") and random.random() < 0.2:
        options += ["-output_ts_offset", str(random.choice([0.7, 5, 100, 90000]))]
        words.append(f"all times {options[-1]} s later")
    source = f"testsrc2=size={width}x{height}:rate={rate}"
    run(
        *("-v", "error", "-y", *before, "-f", "lavfi", "-i", source, *sound),
        *("-frames:v", num_frames, "-vf", ",".join(filters), "-fps_mode", "passthrough"),
        *(*options, "-f", name, clip.path),
    )  # fmt: skip
    clip.words += words


def _sound(
    container: str, random: np.random.Generator, words: list[str]
) -> tuple[list[str], list[str]]:
    """The options of an input with sound, and options of the picture that come before its input."""
    codec = {"webm": "libopus", "ogv": "libopus", "mpg": "mp2", "avi": "mp2"}.get(container, "aac")
    if random.random() < 0.5 or container == "3gp":
        return [], []
    late = random.choice([0, 0.3, 1.0, 2.5]) if container != "avi" else 0
    words.append(f"sound, the picture {late} s after it")
    sound = ["-f", "lavfi", "-i", "sine=d=2:r=48000", "-c:a", codec]
    return sound, ["-itsoffset", str(late)] if late else []


def _turn(clip: Clip, container: str, random: np.random.Generator) -> None:
    options = ["-display_rotation", str(90 * random.integers(0, 4))]
    options += ["-display_hflip"] if random.random() < 0.4 else []
    options += ["-display_vflip"] if random.random() < 0.3 else []
    _remux(clip, container, options, [])
    clip.words.append(" ".join(options))


def _cut_start(clip: Clip, container: str, random: np.random.Generator) -> None:
    start = round(float(random.uniform(0.05, 0.4)), 3)
    before = clip.path.read_bytes()
    _remux(clip, container, ["-ss", str(start)], [])
    if b"stsz" not in clip.path.read_bytes():
        clip.path.write_bytes(before)
        return
    clip.words.append(f"cut at {start} s by an edit list")


def _remux(clip: Clip, container: str, before: list[str], after: list[str]) -> None:
    target = clip.path.with_name(f"next.{container}")
    name = CONTAINERS[container][0]
    source = ("-v", "error", "-y", *before, "-i", clip.path, "-map", "0")
    run(*source, "-c", "copy", "-strict", "-2", *after, "-f", name, target)
    target.replace(clip.path)


def _crop_boxes(clip: Clip, random: np.random.Generator) -> None:
    """Add a `clap` box to the sample entry of an MP4 file whose `moov` comes last."""
    data = bytearray(clip.path.read_bytes())
    moov = data.rindex(b"moov") - 4
    if moov < data.index(b"mdat"):
        return
    entry = _video_entry(data)
    width, height = struct.unpack(">HH", data[entry + 32 : entry + 36])
    left, top, right, bottom = _crop_of(random, width, height)
    numbers = [width - left - right, 1, height - top - bottom, 1, left - right, 2, top - bottom, 2]
    data[entry + 86 : entry + 86] = struct.pack(">I4s8i", 40, b"clap", *numbers)
    at = moov
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", None):
        at = entry if kind is None else data.rindex(kind, at, entry) - 4
        size = struct.unpack(">I", data[at : at + 4])[0]
        data[at : at + 4] = struct.pack(">I", size + 40)
    clip.path.write_bytes(data)
    clip.words.append(f"clap cuts {left} {top} {right} {bottom}")


def _video_entry(data: bytes | bytearray) -> int:
    """Where the sample entry of the video track begins."""
    return data.index(b"stsd", data.index(b"vide")) + 12


def _crop_of(random: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Even numbers, and an even rest, for ffmpeg cuts colours off in whole samples."""
    left, right = (2 * int(side) for side in random.integers(0, width // 8, 2))
    top, bottom = (2 * int(side) for side in random.integers(0, height // 8, 2))
    return left, top, right + width % 2, bottom + height % 2


def _crop_matroska(clip: Clip, random: np.random.Generator) -> None:
    """Put PixelCrop where the colour of the video is described, in a file that is made anew."""
    tags = ["-color_primaries", "1", "-color_trc", "1", "-colorspace", "1", "-color_range", "1"]
    data = clip.path.read_bytes()
    if data.find(b"\x55\xb0", 0, 1000) < 0:
        try:
            _remux(clip, "mkv", [], tags)
        except AssertionError:
            return
    data = bytearray(clip.path.read_bytes())
    at = data.find(b"\x55\xb0", 0, 1500)
    pixels = data.find(b"\xb0", 0, at)
    size = data[at + 2] & 0x7F
    if at < 0 or pixels < 0 or size < 17:
        return
    width, height = (
        data[data.find(kind, pixels - 1, at) + 2] for kind in (b"\xb0\x81", b"\xba\x81")
    )
    sides = _crop_of(random, width, height)
    crop = b"".join(kind + bytes([0x81, sides[side]]) for kind, side in _CROP_BYTES)
    rest = 3 + size - len(crop)
    data[at : at + 3 + size] = crop + bytes([0xEC, 0x80 | (rest - 2)]) + bytes(rest - 2)
    clip.path.write_bytes(data)
    clip.words.append(f"PixelCrop cuts {sides}")


def _join(clip: Clip, container: str, random: np.random.Generator) -> None:
    """Put the clip behind itself: its clock starts again; or leaps, if the second half is moved."""
    second, leap = clip.path, int(random.choice([0, 15, 100, 95_000]))
    if leap:
        second = clip.path.with_name(f"second.{container}")
        run(*("-v", "error", "-y", "-i", clip.path, "-map", "0", "-c", "copy"),
            *("-output_ts_offset", leap, "-f", CONTAINERS[container][0], second))  # fmt: skip
    data = second.read_bytes()
    clip.path.write_bytes(clip.path.read_bytes() + (data[13:] if container == "flv" else data))
    clip.words.append(f"joined to itself, {leap} s later")
    clip.is_joined = True
