"""Send mutated media through a decoding process; each one must get an answer.

    python -m tests.pipeline.fuzz_media --files 2000 --seed 0

Bit flips, cuts, overwritten and inserted ranges, and heads of one file on the tails of another,
over all containers and codecs that can be written here and all formats of pictures, under names
with wrong extensions. Prints how many files came to what end.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.fetch.media_access import MediaAccess
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.status import ErrorCode
from tests.pipeline import videos
from tests.pipeline.decoding import decode_in
from tests.pipeline.media import test_images
from tests.pipeline.media.parity.ffmpeg import run

LIMITS = MediaLimits(max_decode_s=2.0, max_decode_bytes=512 << 20, max_pixels=1 << 22)
_FIVE = FrameSampling(num_frames=5)
BY_FFMPEG = {
    "prores in mov, rare": "mov -c:v prores_ks -pix_fmt yuv422p10le",
    "prores with alpha in mov, rare": "mov -c:v prores_ks -pix_fmt yuva444p10le",
    "dnxhd in mov, rare": "mov -c:v dnxhd -profile:v dnxhr_sq -pix_fmt yuv422p",
    "dnxhd in mkv, rare": "matroska -c:v dnxhd -profile:v dnxhr_hqx -pix_fmt yuv422p10le",
    "ffv1 in mkv, rare": "matroska -c:v ffv1 -level 3 -slicecrc 1 -g 5",
    "ffv1 in avi, rare": "avi -c:v ffv1 -level 1 -g 1",
    "theora in ogg, rare": "ogg -c:v libtheora -q:v 5 -g 5",
    "theora in mkv, rare": "matroska -c:v libtheora -q:v 5",
    "flv1 in flv, rare": "flv -c:v flv -g 8",
    "mpeg1 in ps, rare": "mpeg -c:v mpeg1video -bf 2",
    "mpeg1 in ts, rare": "mpegts -c:v mpeg1video -g 6",
}
_EXTENSIONS = (".mp4", ".mkv", ".m3u8", ".jpg", ".png", ".sdp", "")


def seeds() -> dict[str, bytes]:
    """Undamaged media, one of each kind."""
    found = {kind: videos.video(kind) for kind in videos.KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for kind in BY_FFMPEG:
            found[kind] = by_ffmpeg(kind, Path(folder))
    for kind in test_images.FORMATS:
        found[kind] = test_images.picture(kind, size=(90, 70))
    for kind in ("GIF", "WEBP", "PNG"):
        found[f"animated {kind}"] = test_images.animation(kind)
    return found


def by_ffmpeg(kind: str, folder: Path) -> bytes:
    """A clip of 20 frames from the ffmpeg program, which has encoders that PyAV does not have."""
    container, *options = BY_FFMPEG[kind].split()
    source = ("-f", "lavfi", "-i", "testsrc2=size=256x120:rate=25")
    path = folder / "clip"
    run("-v", "error", "-y", *source, "-frames:v", 20, *options, "-f", container, path)
    return path.read_bytes()


def mutated(num_files: int, seed: int, only: str = "") -> Iterator[bytes]:
    """Yield mutations of the media of kinds with `only` in their names, the same for a seed."""
    random = np.random.default_rng(seed)
    whole = [source for kind, source in seeds().items() if only in kind]
    for number in range(num_files):
        other = whole[random.integers(len(whole))]
        yield _mutate(whole[number % len(whole)], other, random)


def _mutate(source: bytes, other: bytes, random: np.random.Generator) -> bytes:
    changed = np.frombuffer(source, np.uint8).copy()
    at = int(random.integers(len(changed)))
    match random.integers(6):
        case 0:  # bits, few or many, all over the file
            where = random.integers(0, len(changed), int(2 ** random.uniform(0, 9)))
            changed[where] ^= (1 << random.integers(0, 8, len(where))).astype(np.uint8)
        case 1:  # bits of the head, where the structure is
            where = random.integers(0, min(len(changed), 600), int(random.integers(1, 12)))
            changed[where] ^= (1 << random.integers(0, 8, len(where))).astype(np.uint8)
        case 2:
            return source[:at]
        case 3:  # numbers become huge
            changed[at : at + 4] = 255
        case 4:
            return source[:at] + bytes(random.integers(0, 256, 64, np.uint8)) + source[at:]
        case _:
            return source[:at] + other[at % len(other) :]
    return changed.tobytes()


def fuzz(num_files: int, seed: int, only: str = "") -> dict[str, object]:
    """Decode mutations; return the count of each result, the longest time, the processes lost."""
    ends: Counter[str] = Counter()
    longest_s, num_processes = 0.0, 0
    decoder = SandboxedDecoder(LIMITS)
    with tempfile.TemporaryDirectory() as folder:
        access = MediaAccess(base=folder)
        for number, source in enumerate(mutated(num_files, seed, only)):
            path = Path(folder, f"file{_EXTENSIONS[number % len(_EXTENSIONS)]}")
            path.write_bytes(source)
            before, started = decoder._process, time.monotonic()
            ends[_end(decoder, access, path)] += 1
            longest_s = max(longest_s, time.monotonic() - started)
            num_processes += decoder._process is not before
            path.unlink()
    decoder.close()
    return {
        "files": ends.total(),
        "ends": dict(ends.most_common()),
        "processes": num_processes,
        "longest_s": round(longest_s, 2),
    }


def _end(decoder: SandboxedDecoder, access: MediaAccess, path: Path) -> str:
    """Return `ok`, `damaged`, the error code or the message of an error that is not expected."""
    try:
        media = access.open(path.name)
        assert not isinstance(media, bytes)
        with media:
            frames = decode_in(decoder, media, _FIVE)
    except MediaError as error:
        if "not expected" in error.message:  # an exception of a library that we do not know
            return error.message
        return ErrorCode(error.code).value
    assert 1 <= len(frames.rgb) <= 5
    return "damaged" if frames.facts.num_decode_errors else "ok"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds with this in their names")
    options = parser.parse_args()
    sys.stdout.write(json.dumps(fuzz(options.files, options.seed, options.only)) + "\n")
