"""A look at the sample tables of an MP4 before FFmpeg builds an index of them.

A file of seven kilobytes can claim a hundred million samples; FFmpeg would allocate a place for
each. No sample is smaller than a byte, so a count above the size of the file is a lie. Boxes and
fields: ISO/IEC 14496-12, sections 4.2, 8.7.3 (`stsz`, `stz2`) and 8.8.8 (`trun`).
"""

import struct
from collections.abc import Iterator

from pipeline.codes import ErrorCode
from pipeline.container import Reader
from pipeline.limits import MediaError

_FIRST = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide")
_PARENTS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"))
_COUNT_AT = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # bytes into the box, after its header
_MAX_DEPTH = 8


def check_sample_counts(reader: Reader, num_bytes: int) -> None:
    """Refuse an MP4 that claims more samples than it has bytes; other files pass.

    Raises:
        MediaError: `media_corrupt`.
    """
    reader.seek(0)
    if reader.read(8)[4:] in _FIRST:
        _check(reader, 0, num_bytes, num_bytes, _MAX_DEPTH)


def _check(reader: Reader, start: int, end: int, num_bytes: int, depth: int) -> None:
    for kind, first, last in _boxes(reader, start, end):
        if kind in _PARENTS and depth:
            _check(reader, first, last, num_bytes, depth - 1)
        elif kind in _COUNT_AT:
            reader.seek(first + _COUNT_AT[kind])
            field = reader.read(4)
            if len(field) == 4 and (count := struct.unpack(">I", field)[0]) > num_bytes:
                message = f"the file claims {count} samples, but has only {num_bytes} bytes"
                raise MediaError(ErrorCode.MEDIA_CORRUPT, message)


def _boxes(reader: Reader, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first byte after the header, and end of the boxes in a range."""
    while start + 8 <= end:
        reader.seek(start)
        header = reader.read(16)
        if len(header) < 8:
            return
        size, kind = struct.unpack(">I4s", header[:8])
        first = start + 8
        if size == 1 and len(header) == 16:
            (size,), first = struct.unpack(">Q", header[8:]), start + 16
        stop = end if size == 0 else start + size
        if stop < first:
            return
        yield kind, first, min(stop, end)
        start = stop
