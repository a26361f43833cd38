"""Compare what the model would see of a clip with what ffmpeg shows.

    python -m tests.pipeline.media.parity.compare --containers mp4 mkv --clips 200

Sizes, the times of all frames and their pixels must be the same, as far as two versions of FFmpeg
round differently. Prints the clips that differ, and how many do not.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import av
import numpy as np

from pipeline.media.frame_sampling import FrameSampling
from pipeline.media.frames import Frames
from pipeline.media.limits import MediaError
from pipeline.status import ErrorCode
from tests.pipeline.decoding import decode_video
from tests.pipeline.media.parity.clips import CONTAINERS, Clip, make_clip
from tests.pipeline.media.parity.ffmpeg import show

ALL = FrameSampling(num_frames=100_000)
_MAX_DIFFERENCE = 3.0  # of 255, the mean of a frame
# The stream says where its colours are stored: left of the middle, and what that is once turned.
_CHROMA = (
    "",
    *(
        f":in_h_chr_pos={h}:in_v_chr_pos={v}"
        for h, v in ((0, 128), (128, 0), (256, 128), (128, 256))
    ),
)
_REFUSALS = ("refused: media_too_large the video lasts",)  # FLV whose clock leaps by a day
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_MAX_UNSURE_S = 0.25  # some frames of a rate that varies
_MAX_LATE_S = 0.0021  # containers that count milliseconds round times


def difference(clip: Clip) -> str | None:
    """Say how our frames of a file differ from those of ffmpeg; None if they do not."""
    path = clip.path
    source = path.read_bytes()
    try:
        ours = decode_video(source, ALL)
    except MediaError as error:
        if error.code == ErrorCode.NO_FRAMES and not show(path, (16, 16), 0).rgb.size:
            return None
        return f"refused: {error.code} {error.message}"
    facts = ours.facts
    size_px = (facts.width_px, facts.height_px)
    with av.open(str(path)) as container:
        has_sound, has_start = bool(container.streams.audio), container.start_time is not None
    assert facts.stream is not None
    theirs = show(path, size_px, facts.stream, has_sound=has_sound)
    if theirs.size_px != size_px:
        return f"size {size_px}, ffmpeg has {theirs.size_px}"
    # Of AVI and ASF ffmpeg counts frames that wait in the decoder.
    is_sure = has_start and path.suffix not in (".avi", ".wmv")
    # Where a file with sound was joined, ffmpeg moves the picture by what the sound leaps.
    is_checked = not (clip.is_joined and has_sound)
    if len(ours.rgb) != len(theirs.rgb):
        return f"{len(ours.rgb)} frames, ffmpeg has {len(theirs.rgb)}"
    if is_checked and (late := _late(ours.timestamps_s, theirs.times_s, is_sure=is_sure)):
        return late
    means = np.empty(0)
    for chroma in _CHROMA:
        by_field = facts.is_interlaced and not facts.rotation % 180
        options = chroma + (":interl=-1" if by_field else "")
        shown = show(path, size_px, facts.stream, has_sound=has_sound, chroma=options)
        means = np.abs(ours.rgb.astype(np.int16) - shown.rgb).mean((1, 2, 3))
        if means.max() <= _MAX_DIFFERENCE:
            return _chosen_differ(source, ours)
    if facts.rotation % 180:
        # ffmpeg turns first, and no option says where its colours are then.
        greys = [rgb @ _GREY for rgb in (ours.rgb.astype(np.float32), theirs.rgb)]
        if np.abs(greys[0] - greys[1]).mean((1, 2)).max() <= _MAX_DIFFERENCE:
            return _chosen_differ(source, ours)
    return f"frame {means.argmax()} differs by {means.max():.1f} of 255: {means.round(1)}"


def _late(ours_s: np.ndarray, theirs_s: np.ndarray, *, is_sure: bool) -> str | None:
    """Say how the times differ; only relative to the first frame unless `is_sure`."""
    both = f"{ours_s.round(3).tolist()} and {theirs_s.tolist()}"
    if len(ours_s) != len(theirs_s):
        return f"{len(ours_s)} frames, ffmpeg has {len(theirs_s)}: {both}"
    if (np.diff(theirs_s) <= 0).any():
        return None  # its times fall where an FLV file was joined; ours rise
    if not is_sure:
        theirs_s = theirs_s - theirs_s[0] + ours_s[0]
    late_s = np.abs(ours_s - theirs_s).max()
    most_s = _MAX_LATE_S if is_sure else _MAX_UNSURE_S
    return f"times differ by {late_s:.3f} s: {both}" if late_s > most_s else None


def _chosen_differ(source: bytes, every: Frames) -> str | None:
    """Whether a few frames, reached by seeking, are other ones than those of all frames."""
    end_s = float(every.timestamps_s[-1])
    for sampling, span_s in (
        (FrameSampling(num_frames=3), (None, None)),
        (FrameSampling(num_frames=2), (max(0.0, end_s * 0.6), None)),
    ):
        try:
            few = decode_video(source, sampling, span_s=span_s)
        except MediaError as error:
            return f"a span is refused: {error.message}"
        at = np.searchsorted(every.timestamps_s, few.timestamps_s)
        if not np.array_equal(every.timestamps_s[at], few.timestamps_s):
            return f"times of {sampling} differ"
        if not np.array_equal(every.rgb[at], few.rgb):
            return f"pixels of {sampling} in {span_s} differ"
    return None


def compare(container: str, seeds: range) -> tuple[Counter[str], list[str]]:
    """Compare the clips of a container; the counts of both ends, and what differs."""
    ends: Counter[str] = Counter()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            clip = make_clip(container, seed, Path(folder))
            why = difference(clip)
            is_refused = why is not None and why.startswith(_REFUSALS)
            ends["same" if why is None else "refused" if is_refused else "different"] += 1
            if why is not None and not is_refused:
                found.append(f"{clip.description}: {why}")
            clip.path.unlink()
    return ends, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--containers", nargs="*", default=list(CONTAINERS))
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.containers:
        ends, found = compare(name, range(options.first_seed, options.first_seed + options.clips))
        sys.stdout.write("\n".join([*found, f"{name}: {dict(ends)}", ""]))
        sys.stdout.flush()
