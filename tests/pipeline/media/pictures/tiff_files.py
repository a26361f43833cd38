"""TIFF and BMP files of all kinds of samples."""

import struct

import numpy as np
from PIL import Image

from tests.pipeline.media.pictures.making import (
    Made,
    Random,
    by_ffmpeg,
    on_white,
    saved,
    smooth,
    turned,
)


def tiff(random: Random) -> Made:
    """All kinds of samples that are read, both byte orders, compressed or not, turned."""
    orientation = int(random.integers(1, 9))  # libtiff writes no other
    kind = str(random.choice(["RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "16", "F", "16 RGB"]))
    options = {"compression": random.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])}
    values = smooth(random, {"RGBA": 4, "CMYK": 4, "LA": 2}.get(kind, 3))
    if kind == "16 RGB":
        content = _tiff_of_16_bits(values, orientation, ">" if random.integers(2) else "<")
        shown = values
    else:
        image, shown = _tiff_image(kind, values)
        content = saved(image, "TIFF", tiffinfo={274: orientation}, **options)
    return Made(content, turned(shown, orientation)[None], f"{kind} {orientation} {options}")


def _tiff_image(kind: str, values: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    grey = np.repeat(values[..., :1], 3, axis=-1)
    if kind == "16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257), grey
    if kind == "F":
        return Image.fromarray((values[..., 0] / 255.0).astype(np.float32)), grey
    if kind == "1":
        return Image.fromarray(values[..., 0] > 127), np.where(grey > 127, 255, 0)
    if kind == "P":
        image = Image.fromarray(values).quantize(64)
        return image, np.asarray(image.convert("RGB"))
    if kind == "CMYK":
        light = 255.0 - values
        return Image.fromarray(values, "CMYK"), light[..., :3] * light[..., 3:] / 255.0
    if kind in ("RGBA", "LA"):
        color = values[..., :3] if kind == "RGBA" else grey
        return Image.fromarray(values, kind), on_white(color, values[..., -1])
    return Image.fromarray(values if kind == "RGB" else values[..., 0].copy()), (
        values if kind == "RGB" else grey
    )


def _tiff_of_16_bits(rgb: np.ndarray, orientation: int, order: str) -> bytes:
    """A TIFF of 16 bits a channel, which Pillow does not write."""
    height, width, _ = rgb.shape
    data = (rgb.astype(np.uint16) * 257).astype(f"{order}u2").tobytes()
    return tiff_file(data, (width, height), (16, 16, 16), {274: orientation}, order)


def tiff_file(
    data: bytes,
    size: tuple[int, int],
    bits: tuple[int, ...],
    tags: dict[int, int] | None = None,
    order: str = "<",
) -> bytes:
    """A TIFF of one strip, written by hand: header, samples, and one directory of numbers."""
    directory = 8 + len(data)
    color = 2 if len(bits) == 3 else 1  # RGB, or grey where zero is black
    numbers = {
        256: size[0], 257: size[1], 259: 1, 262: color, 273: 8, 277: len(bits), 278: size[1],
        279: len(data), **(tags or {}),
    }  # fmt: skip
    entries = {tag: struct.pack(f"{order}HHII", tag, 4, 1, each) for tag, each in numbers.items()}
    many = struct.pack(f"{order}{len(bits)}H", *bits)
    behind = directory + 2 + 12 * (len(entries) + 1) + 4
    where = struct.pack(f"{order}I", behind) if len(bits) > 2 else many.ljust(4, b"\0")
    entries[258] = struct.pack(f"{order}HHI", 258, 3, len(bits)) + where
    body = struct.pack(f"{order}H", len(entries)) + b"".join(
        entries[tag] for tag in sorted(entries)
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, directory)
    return head + data + body + bytes(4) + (many if len(bits) > 2 else b"")


def bmp(random: Random) -> Made:
    """1, 8, 24 and 32 bits; the fourth channel of 32 bits is alpha where one is not zero."""
    kind = str(random.choice(["RGB", "L", "1", "P", "RGBA", "unused alpha"]))
    values = smooth(random, 4)
    if kind in ("RGBA", "unused alpha"):
        if kind == "unused alpha":
            values[..., 3] = 0
        content = bmp_with_alpha(values)
        rgb = values[..., :3]
        return Made(content, (rgb if kind != "RGBA" else on_white(rgb, values[..., 3]))[None], kind)
    image = Image.fromarray(values[..., :3].copy())
    image = image.quantize(64) if kind == "P" else image.convert(kind)
    content = saved(image, "BMP")
    return Made(content, by_ffmpeg(content, "rgb24"), kind)


def bmp_with_alpha(rgba: np.ndarray) -> bytes:
    """A bitmap with masks for red, green, blue and alpha (BITMAPV4HEADER)."""
    height, width, _ = rgba.shape
    data = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(data), 2835, 2835, 0, 0)
    head += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return (
        b"BM" + struct.pack("<IHHI", 14 + len(head) + len(data), 0, 0, 14 + len(head)) + head + data
    )
