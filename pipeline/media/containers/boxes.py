"""Boxes of an MP4 or MOV file (ISO/IEC 14496-12), read without believing a size or a count."""

import struct
from collections.abc import Iterator
from fractions import Fraction

from pipeline.media.containers.reader import Reader
from pipeline.media.limits import MediaError
from pipeline.status import ErrorCode

_TOP_LEVEL = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide")
_PARENTS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"))
_COUNT_AT = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # offset of the sample count, after the header
_MAX_DEPTH = 8
_TRACK_ID_AT = (12, 20)  # in `tkhd`, in its versions 0 and 1
_ENTRY_BYTES = 78  # of a visual sample entry, before its boxes; its size in pixels is at 24

Range = tuple[int, int]


def check_sample_counts(reader: Reader, num_bytes: int) -> None:
    """Refuse an MP4 file that claims more samples than it has bytes; other files pass.

    FFmpeg would make tables of that many samples, whatever the file holds.

    Raises:
        MediaError: `media_corrupt`, with both numbers.
    """
    if reader.read_at(0, 8)[4:] in _TOP_LEVEL:
        _check_boxes(reader, 0, num_bytes, num_bytes, _MAX_DEPTH)


def clean_aperture(reader: Reader, track_id: int) -> tuple[int, int, int, int] | None:
    """Read what the `clap` box of a track cuts off: left, top, right, bottom in pixels, or None."""
    whole = (0, reader.seek(0, 2))
    for moov in _find(reader, whole, b"moov"):
        for trak in _find(reader, moov, b"trak"):
            if track_id not in [_track_id(reader, tkhd) for tkhd in _find(reader, trak, b"tkhd")]:
                continue
            for stsd in _find(reader, trak, b"mdia", b"minf", b"stbl", b"stsd"):
                return _clean_aperture_of(reader, stsd)
    return None


def _clean_aperture_of(reader: Reader, stsd: Range) -> tuple[int, int, int, int] | None:
    """Read the `clap` of the first sample entry of a track."""
    for _, first, last in _boxes(reader, stsd[0] + 8, stsd[1]):  # after version and count
        size = reader.read_at(first + 24, 4)
        for clap in _find(reader, (first + _ENTRY_BYTES, last), b"clap"):
            content = reader.read_at(clap[0], 32)
            if len(content) < 32 or len(size) < 4:
                return None
            width_px, height_px = struct.unpack(">HH", size)
            numbers = struct.unpack(">iIiIiIiI", content)
            if not all(numbers[1::2]):
                return None
            width, height, right, down = map(Fraction, numbers[::2], numbers[1::2])
            left_px, right_px = _cut_off(width_px, width, right)
            top_px, bottom_px = _cut_off(height_px, height, down)
            return left_px, top_px, right_px, bottom_px
        return None
    return None


def _cut_off(stored_px: int, clean: Fraction, offset: Fraction) -> tuple[int, int]:
    """What lies before and behind a clean aperture, whose centre is `offset` off that of all.

    The centre of all pixels is (stored - 1) / 2 (ISO/IEC 14496-12, section 12.1.4).
    """
    first = offset + Fraction(stored_px - 1, 2) - (clean - 1) / 2
    last = first + clean - 1
    return int(first), stored_px - 1 - int(last)


def _track_id(reader: Reader, tkhd: Range) -> int:
    version = reader.read_at(tkhd[0], 1)
    field = reader.read_at(tkhd[0] + _TRACK_ID_AT[version == b"\1"], 4)
    return struct.unpack(">I", field)[0] if len(field) == 4 else -1


def _find(reader: Reader, within: Range, *path: bytes) -> Iterator[Range]:
    """Yield the contents of the boxes at a path of kinds."""
    if not path:
        yield within
        return
    for kind, first, last in _boxes(reader, *within):
        if kind == path[0]:
            yield from _find(reader, (first, last), *path[1:])


def _check_boxes(reader: Reader, start: int, end: int, num_bytes: int, depth: int) -> None:
    for kind, first, last in _boxes(reader, start, end):
        if kind in _PARENTS and depth:
            _check_boxes(reader, first, last, num_bytes, depth - 1)
        elif kind in _COUNT_AT:
            field = reader.read_at(first + _COUNT_AT[kind], 4)
            if len(field) == 4 and (count := struct.unpack(">I", field)[0]) > num_bytes:
                message = f"the file claims {count} samples, but has only {num_bytes} bytes"
                raise MediaError(ErrorCode.MEDIA_CORRUPT, message)


def _boxes(reader: Reader, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each box in a range, where its content starts and where it ends."""
    while start + 8 <= end:
        header = reader.read_at(start, 16)
        if len(header) < 8:
            return
        size, kind = struct.unpack(">I4s", header[:8])
        first = start + 8
        if size == 1 and len(header) == 16:  # a size of 64 bits follows
            (size,), first = struct.unpack(">Q", header[8:]), start + 16
        stop = end if size == 0 else start + size  # 0: the box reaches to the end
        if stop < first:
            return
        yield kind, first, min(stop, end)
        start = stop
