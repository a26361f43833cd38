"""Send mutated media through a decoding process; each one must get an answer.

    python -m tests.pipeline.fuzz_media --files 2000 --seed 0 [--pictures]

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
from PIL import Image

from pipeline.fetch.media_access import MediaAccess
from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.limits import MediaError, MediaLimits
from pipeline.media.sandbox import SandboxedDecoder
from pipeline.status import ErrorCode
from tests.pipeline import videos
from tests.pipeline.decoding import decode_in
from tests.pipeline.media.parity.ffmpeg import run
from tests.pipeline.media.pictures import test_picture as test_images
from tests.pipeline.media.pictures.icc_profiles import grey_profile, rgb_profile
from tests.pipeline.media.pictures.made import KINDS, made
from tests.pipeline.media.pictures.making import saved

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


def seeds(*, pictures: bool = False) -> dict[str, bytes]:
    """Undamaged media, one of each kind; or several pictures of each kind."""
    if pictures:
        return {
            f"{kind} {number}": made(kind, number).content for kind in KINDS for number in range(6)
        }
    found = {kind: videos.video(kind) for kind in videos.KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for kind in BY_FFMPEG:
            found[kind] = by_ffmpeg(kind, Path(folder))
    found |= {kind: made(kind, 1).content for kind in ("heic", "avif", "icc")}
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


def mutated(
    num_files: int, seed: int, *, only: str = "", pictures: bool = False
) -> Iterator[bytes]:
    """Yield mutations of the media of kinds with `only` in their names, the same for a seed."""
    random = np.random.default_rng(seed)
    whole = [source for kind, source in seeds(pictures=pictures).items() if only in kind]
    for number in range(num_files):
        if pictures and number % 4 == 3:
            yield _with_profile(random)
            continue
        other = whole[random.integers(len(whole))]
        yield _mutate(whole[number % len(whole)], other, random)


def _with_profile(random: np.random.Generator) -> bytes:
    """A whole picture with a mutated profile, which the checksums of a file would protect."""
    profile = rgb_profile("Display P3") if random.integers(2) else grey_profile(1.8)
    image = Image.new("RGB" if random.integers(2) else "L", (32, 24), "green")
    kind = ("PNG", "TIFF", "JPEG")[random.integers(3)]
    return saved(image, kind, icc_profile=_mutate(profile, profile, random))


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


def fuzz(num_files: int, seed: int, *, only: str = "", pictures: bool = False) -> dict[str, object]:
    """Decode mutations; return how often each end came, the longest time, the most memory."""
    ends: Counter[str] = Counter()
    longest_s, num_processes, peak_bytes = 0.0, 0, 0
    decoder = SandboxedDecoder(LIMITS)
    with tempfile.TemporaryDirectory() as folder:
        access = MediaAccess(base=folder)
        for number, source in enumerate(mutated(num_files, seed, only=only, pictures=pictures)):
            path = Path(folder, f"file{_EXTENSIONS[number % len(_EXTENSIONS)]}")
            path.write_bytes(source)
            before, started = decoder._process, time.monotonic()
            ends[_end(decoder, access, path)] += 1
            longest_s = max(longest_s, time.monotonic() - started)
            num_processes += decoder._process is not before
            peak_bytes = max(peak_bytes, decoder.peak_bytes)
            path.unlink()
    decoder.close()
    return {
        "files": ends.total(),
        "ends": dict(ends.most_common()),
        "processes": num_processes,
        "longest_s": round(longest_s, 2),
        "peak_mib": peak_bytes >> 20,
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
    parser.add_argument("--pictures", action="store_true", help="pictures of all kinds only")
    parser.add_argument("--only", default="", help="kinds with this in their names")
    options = parser.parse_args()
    found = fuzz(options.files, options.seed, only=options.only, pictures=options.pictures)
    sys.stdout.write(json.dumps(found) + "\n")
