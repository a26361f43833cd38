"""An independent decoder: the ffmpeg program of the package `imageio-ffmpeg`."""

import re
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
_FRAME = re.compile(r"pts_time:(\S+).*? sar:(\d+)/(\d+) s:(\d+)x(\d+)")


def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg on one thread; it fails with what it said."""
    command = [FFMPEG, "-nostdin", "-hide_banner", "-threads", "1", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, (arguments, done.stderr.decode(errors="replace")[-2000:])
    return done


@dataclass(frozen=True)
class Shown:
    """What ffmpeg shows of a file."""

    times_s: np.ndarray  # [I] from the start of the container
    rgb: np.ndarray  # [I, H, W, 3]
    size_px: tuple[int, int]  # of the first frame, with square pixels


def show(
    path: Path, size_px: tuple[int, int], stream: int, *, has_sound: bool = False, chroma: str = ""
) -> Shown:
    """Decode every frame of a stream of a file, turned and cropped, at a size.

    With `has_sound` ffmpeg reads the sound, too: some containers begin with what is read of them.
    `chroma` tells its scaler where colours are stored; left alone, it takes them for centred.
    """
    width, height = size_px
    sound = ("-map", "0:a", "-f", "null", "-") if has_sound else ()
    done = run(
        *("-i", path, "-map", f"0:{stream}", "-fps_mode", "passthrough", "-enc_time_base", "demux"),
        *("-vf", f"showinfo=checksum=0,scale={width}:{height}:flags=bicubic{chroma}"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-", *sound),
    )
    found = _FRAME.findall(done.stderr.decode(errors="replace"))
    rgb = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    times_s = np.array([float(each[0]) for each in found])
    assert len(times_s) == len(rgb)
    if not found:
        return Shown(times_s, rgb, size_px)
    _, numerator, denominator, stored_width, stored_height = found[0]
    aspect = Fraction(int(numerator) or 1, int(denominator) if int(numerator) else 1)
    square = (
        round(int(stored_width) * max(aspect, 1)),
        round(int(stored_height) / min(aspect, 1)),
    )
    return Shown(times_s, rgb, square)
