"""PNG files of every colour type and depth, written chunk by chunk."""

import struct
import zlib

import numpy as np

from tests.pipeline.media.pictures.making import (
    Made,
    Random,
    by_ffmpeg,
    on_white,
    oriented,
    smooth,
    turned,
)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


_PNG = {  # color type: name, channels, bits
    0: ("grey", 1, (1, 2, 4, 8, 16)), 2: ("rgb", 3, (8, 16)), 3: ("palette", 1, (1, 2, 4, 8)),
    4: ("grey alpha", 2, (8, 16)), 6: ("rgba", 4, (8, 16)),
}  # fmt: skip


def png(random: Random) -> Made:
    """Every colour type and depth, with tRNS or alpha or neither, turned by eXIf or XMP."""
    color = int(random.choice(list(_PNG)))
    name, channels, depths = _PNG[color]
    bits = int(random.choice(depths))
    values = smooth(random, channels).astype(np.uint32) * 257 >> 16 - bits
    height, width, _ = values.shape
    orientation, options, what = oriented(random)
    chunks = b""
    rgba = _png_pixels(values, bits)
    table = np.empty(0)
    if color == 3:
        table = random.integers(0, 256, (1 << bits, 4), np.uint8)
        chunks += chunk(b"PLTE", table[:, :3].tobytes())
        rgba = table[values[..., 0]]
        rgba[..., 3] = 255
    if color in (0, 2, 3) and random.integers(2):
        clear = values[random.integers(height), random.integers(width)]
        if color == 3:
            chunks += chunk(b"tRNS", table[:, 3].tobytes())
            rgba[..., 3] = table[values[..., 0], 3]
        else:
            chunks += chunk(b"tRNS", b"".join(struct.pack(">H", value) for value in clear))
            rgba[..., 3] = np.where((values == clear).all(axis=-1), 0, 255)
        what += " tRNS"
    if "exif" in options:
        chunks += chunk(b"eXIf", options["exif"][6:])
    else:
        chunks += chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + options["xmp"])
    content = png_file(values, bits, color, chunks)
    if "tRNS" not in what:  # FFmpeg leaves it out for some depths
        assert np.abs(by_ffmpeg(content)[0].astype(int) - rgba).max() <= 1
    shown = on_white(rgba[..., :3], rgba[..., 3])
    return Made(content, turned(shown, orientation)[None], f"{name} {bits} bits {what}")


def png_file(values: np.ndarray, bits: int, color: int, chunks: bytes = b"") -> bytes:
    """Write samples [H, W, C] of a colour type; `chunks` come before the pixels."""
    height, width, _ = values.shape
    lines = values.reshape(height, -1)
    if bits == 16:
        rows = lines.astype(">u2").view(np.uint8).reshape(height, -1)
    else:
        shifts = np.arange(bits - 1, -1, -1)
        rows = np.packbits((lines[..., None] >> shifts & 1).reshape(height, -1), axis=1)
    data = np.insert(rows.astype(np.uint8), 0, 0, axis=1).tobytes()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + chunks + body


def _png_pixels(values: np.ndarray, bits: int) -> np.ndarray:
    """[H, W, 4] uint8 the colours of samples without a palette."""
    samples = values * (255 // ((1 << bits) - 1)) if bits < 16 else values >> 8
    channels = (0, 1, 2) if values.shape[2] > 2 else (0, 0, 0)
    alpha = samples[..., -1] if values.shape[2] in (2, 4) else np.full(samples.shape[:2], 255)
    return np.dstack([samples[..., channels], alpha]).astype(np.uint8)
