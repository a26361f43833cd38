"""Elements of a Matroska or WebM file (RFC 8794 and 9559), as far as cropping needs them."""

from collections.abc import Iterator

from pipeline.media.containers.reader import Reader

_SEGMENT, _TRACKS, _TRACK_ENTRY = 0x18538067, 0x1654AE6B, 0xAE
_TRACK_TYPE, _VIDEO_TYPE = 0x83, 1
_VIDEO, _PIXEL_CROPS = 0xE0, (0x54CC, 0x54BB, 0x54DD, 0x54AA)  # left, top, right, bottom
_MAX_ELEMENTS = 10_000  # of the segment that are read until the tracks come

Element = tuple[int, int, int]  # the id, where the content starts and where it ends


def pixel_crop(reader: Reader, number: int) -> tuple[int, int, int, int] | None:
    """Read what a file cuts off its video track of this number, counted from 0.

    Returns:
        left, top, right, bottom in pixels; None if there is no such track.
    """
    for track in _tracks(reader):
        elements = list(_elements(reader, *track))
        if [_number(reader, each) for each in elements if each[0] == _TRACK_TYPE] != [_VIDEO_TYPE]:
            continue
        if number:
            number -= 1
            continue
        videos = (each for each in elements if each[0] == _VIDEO)
        found = {
            part[0]: _number(reader, part)
            for each in videos
            for part in _elements(reader, *each[1:])
        }
        left, top, right, bottom = (found.get(kind, 0) for kind in _PIXEL_CROPS)
        return left, top, right, bottom
    return None


def _tracks(reader: Reader) -> Iterator[tuple[int, int]]:
    """Yield where each track of the first list of tracks is described."""
    for kind, first, last in _elements(reader, 0, reader.seek(0, 2)):
        if kind != _SEGMENT:
            continue
        for child, start, end in _elements(reader, first, last):
            if child == _TRACKS:
                yield from (e[1:] for e in _elements(reader, start, end) if e[0] == _TRACK_ENTRY)
                return
        return


def _elements(reader: Reader, start: int, end: int) -> Iterator[Element]:
    """Yield the elements in a range; one of unknown size reaches to the end of the range."""
    for _ in range(_MAX_ELEMENTS):
        header = reader.read_at(start, 12) if start < end else b""
        if not header:
            return
        id_bytes, size_bytes = _length(header, 0, 4), 0
        if id_bytes:
            size_bytes = _length(header, id_bytes, 8)
        if not size_bytes:
            return
        kind = int.from_bytes(header[:id_bytes])
        bits = 7 * size_bytes
        size = int.from_bytes(header[id_bytes : id_bytes + size_bytes]) & ((1 << bits) - 1)
        first = start + id_bytes + size_bytes
        last = end if size == (1 << bits) - 1 else min(first + size, end)
        yield kind, first, last
        start = last


def _length(header: bytes, at: int, most: int) -> int:
    """The number of bytes of the variable-size integer at a place; 0 if it is none."""
    if at >= len(header) or not header[at]:
        return 0
    num_bytes = 9 - header[at].bit_length()
    return num_bytes if num_bytes <= most and at + num_bytes <= len(header) else 0


def _number(reader: Reader, element: Element) -> int:
    """The value of an element that is an unsigned integer."""
    _, first, last = element
    return int.from_bytes(reader.read_at(first, min(last - first, 8)))
