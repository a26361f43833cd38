"""HEIC and AVIF files, written box by box: tiles, turns, mirrors, crops and alpha.

ISO/IEC 14496-12 (boxes), 23008-12 (HEIF), 23000-22 (MIAF).
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

_ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, body: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags) + body)


@dataclass(frozen=True)
class Coded:
    """One coded picture, its boxes, and what FFmpeg makes of it."""

    kind: bytes  # hvc1 or av01
    config: bytes  # the box hvcC or av1C
    data: bytes
    rgb: np.ndarray


def coded_hevc(rgb: np.ndarray, pixel_format: str = "yuv420p") -> Coded:
    """Code a picture by x265."""
    height_px, width_px, _ = rgb.shape
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx265", rate=1)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, pixel_format
        parameters = "crf=6:log-level=none:keyint=1:colormatrix=smpte170m:range=full"
        stream.options = {"x265-params": parameters, "tag": "hvc1", "preset": "ultrafast"}
        frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(
            format=pixel_format, dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG
        )
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Coded(b"hvc1", _box_in(file.getvalue(), b"hvcC"), *_decoded(file))


def coded_av1(rgb: np.ndarray, mode: str = "RGB", subsampling: str = "4:4:4") -> Coded:
    """Code a picture by libaom, through Pillow's encoder."""
    file = io.BytesIO()
    image = Image.fromarray(rgb).convert(mode)
    image.save(file, "AVIF", quality=95, subsampling=subsampling, autotiling=False, speed=10)
    return Coded(b"av01", _box_in(file.getvalue(), b"av1C"), *_decoded(file))


def _box_in(content: bytes, kind: bytes) -> bytes:
    at = content.index(kind) - 4
    return content[at : at + struct.unpack_from(">I", content, at)[0]]


def _decoded(file: io.BytesIO) -> tuple[bytes, np.ndarray]:
    """The one packet of a file, and its picture as FFmpeg decodes it."""
    file.seek(0)
    with av.open(file) as container:
        assert isinstance(container, InputContainer)
        (data,) = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    file.seek(0)
    with av.open(file) as container:
        assert isinstance(container, InputContainer)
        frame = next(container.decode(video=0))
        return data, frame.to_ndarray(format="rgb24")


def heif(
    tiles: Sequence[Coded],
    *,
    columns: int = 1,
    size: tuple[int, int] | None = None,
    turns: int = 0,
    mirror: int | None = None,
    alpha: Coded | None = None,
    colors: bytes | None = None,
    exif: bytes | None = None,
) -> bytes:
    """A file of one picture, of one tile or more, row by row.

    `size` is width and height of the whole; `turns` are quarter turns counterclockwise (`irot`);
    `mirror` is 0 for top and bottom, 1 for left and right (`imir`), after the turns; `colors` is
    the body of `colr`.
    """
    rows = len(tiles) // columns
    side_h, side_w, _ = tiles[0].rgb.shape
    width_px, height_px = size or (columns * side_w, rows * side_h)
    items = [(coded.kind, coded.data) for coded in tiles]
    is_grid = len(tiles) > 1
    primary = 1
    if is_grid:
        items.append(
            (b"grid", struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width_px, height_px))
        )
        primary = len(items)
    references = b""
    if is_grid:
        numbers = b"".join(struct.pack(">H", 1 + at) for at in range(len(tiles)))
        references += box(b"dimg", struct.pack(">HH", primary, len(tiles)) + numbers)
    properties: list[bytes] = []
    of_item: dict[int, list[int]] = {}

    def give(item: int, content: bytes, *, essential: bool = False) -> None:
        if content not in properties:
            properties.append(content)
        number = 1 + properties.index(content)
        of_item.setdefault(item, []).append(number | (0x80 if essential else 0))

    def describe(item: int, coded: Coded, num_channels: int) -> None:
        give(item, full_box(b"ispe", struct.pack(">II", coded.rgb.shape[1], coded.rgb.shape[0])))
        give(item, full_box(b"pixi", bytes([num_channels, *[8] * num_channels])))
        give(item, coded.config, essential=True)

    num_channels = 3
    for number, coded in enumerate(tiles, 1):
        describe(number, coded, num_channels)
        if colors is not None:
            give(number, box(b"colr", colors))
    if is_grid:
        give(primary, full_box(b"ispe", struct.pack(">II", width_px, height_px)))
        give(primary, full_box(b"pixi", bytes([3, 8, 8, 8])))
        if colors is not None:
            give(primary, box(b"colr", colors))
    if turns:
        give(primary, box(b"irot", bytes([turns])), essential=True)
    if mirror is not None:
        give(primary, box(b"imir", bytes([mirror])), essential=True)
    if alpha is not None:
        items.append((alpha.kind, alpha.data))
        describe(len(items), alpha, 1)
        give(len(items), full_box(b"auxC", _ALPHA))
        references += box(b"auxl", struct.pack(">HHH", len(items), 1, primary))
        if turns:
            give(len(items), box(b"irot", bytes([turns])), essential=True)
        if mirror is not None:
            give(len(items), box(b"imir", bytes([mirror])), essential=True)
    if exif is not None:
        items.append((b"Exif", struct.pack(">I", 0) + exif))
        references += box(b"cdsc", struct.pack(">HHH", len(items), 1, primary))
    brand = b"heic" if tiles[0].kind == b"hvc1" else b"avif"
    head = box(b"ftyp", brand + struct.pack(">I", 0) + b"mif1miaf" + brand)
    before = head + _meta(items, primary, references, properties, of_item, 0)
    meta = _meta(items, primary, references, properties, of_item, len(before) + 8)
    return head + meta + box(b"mdat", b"".join(data for _, data in items))


def _meta(items, primary, references, properties, of_item, offset):
    hidden = 1 if items[primary - 1][0] == b"grid" else 0
    entries, places = b"", b""
    for number, (kind, data) in enumerate(items, 1):
        is_tile = hidden and number < primary
        body = struct.pack(">HH4s", number, 0, kind) + b"\0"
        entries += full_box(b"infe", body, 2, 1 if is_tile else 0)
        places += struct.pack(">HHHII", number, 0, 1, offset, len(data))
        offset += len(data)
    associations = b"".join(
        struct.pack(">HB", item, len(numbers)) + bytes(numbers)
        for item, numbers in sorted(of_item.items())
    )
    parts = [
        full_box(b"hdlr", struct.pack(">I4s12x", 0, b"pict") + b"\0"),
        full_box(b"pitm", struct.pack(">H", primary)),
        full_box(b"iloc", struct.pack(">BBH", 0x44, 0, len(items)) + places),
        full_box(b"iinf", struct.pack(">H", len(items)) + entries),
        full_box(b"iref", references) if references else b"",
        box(
            b"iprp",
            box(b"ipco", b"".join(properties))
            + full_box(b"ipma", struct.pack(">I", len(of_item)) + associations),
        ),
    ]
    return full_box(b"meta", b"".join(parts))
