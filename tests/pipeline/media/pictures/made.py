"""Pictures made at random, each with the pixels that a viewer shows, found without our decoders.

What a file holds is known where it is written: lossless pixels are the truth themselves, and FFmpeg
decodes the others. How they are turned, put on white and coloured is numpy, by the standards.

    python -m tests.pipeline.media.pictures.made --files 200     # all kinds, and how far each is off
"""

import argparse
import io
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import av
import numpy as np
from PIL import Image

from pipeline.media.frame_sampling import FrameSampling
from tests.pipeline.decoding import decode_media
from tests.pipeline.media.pictures.heif_files import coded_av1, coded_hevc, heif
from tests.pipeline.media.pictures.icc_profiles import (
    PRIMARIES,
    grey_in_srgb,
    grey_profile,
    in_srgb,
    rgb_profile,
)

Random = np.random.Generator


@dataclass(frozen=True)
class Made:
    """A file, and the pictures that a viewer shows, [I, H, W, 3] on white."""

    content: bytes
    shown: np.ndarray
    what: str


def smooth(random: Random, channels: int = 3, least: int = 17, most: int = 90, step: int = 1):
    """[H, W, channels] uint8: waves that every way to store chroma keeps."""
    height, width = (int(random.integers(least, most) // step * step) for _ in range(2))
    y, x = np.mgrid[:height, :width] / 60.0
    waves = [
        np.sin(random.uniform(0, 6) + random.uniform(0.5, 2) * x + random.uniform(0.5, 2) * y)
        for _ in range(channels)
    ]
    return (127.5 + 127.4 * np.stack(waves, axis=-1)).astype(np.uint8)


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """The picture that EXIF's orientation shows: where row 0 and column 0 of the stored one go."""
    flipped = {2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1]}
    transposed = stored.swapaxes(0, 1)
    flipped |= {5: transposed, 6: transposed[:, ::-1], 7: transposed[::-1, ::-1]}
    return {**flipped, 8: transposed[::-1]}.get(orientation, stored)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend [.., 3] over white by alpha [..] of 0 to 255."""
    share = alpha[..., None] / 255.0
    return (rgb * share + 255.0 * (1.0 - share) + 0.5).astype(np.uint8)


def by_ffmpeg(content: bytes, pixel_format: str = "rgba") -> np.ndarray:
    """[I, H, W, C] the frames of a file as FFmpeg decodes them; nothing turns them."""
    with av.open(io.BytesIO(content)) as container:
        return np.stack([f.to_ndarray(format=pixel_format) for f in container.decode(video=0)])


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _xmp(orientation: int, random: Random) -> bytes:
    value = random.choice(
        [
            'tiff:Orientation="%d"/>',
            "tiff:Orientation='%d'/>",
            "><tiff:Orientation>%d</tiff:Orientation></rdf:Description>",
        ]
    )
    return (
        "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF "
        "xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description "
        f"xmlns:tiff='http://ns.adobe.com/tiff/1.0/' {value % orientation}</rdf:RDF></x:xmpmeta>"
    ).encode()  # fmt: skip


def _oriented(random: Random) -> tuple[int, dict[str, object], str]:
    """An orientation, in EXIF or in XMP, as options of Pillow's writers."""
    orientation = int(random.integers(0, 10))
    if random.random() < 0.3 and 1 <= orientation <= 8:
        return orientation, {"xmp": _xmp(orientation, random)}, f"XMP {orientation}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    return orientation, {"exif": exif.tobytes()}, f"EXIF {orientation}"


def jpeg(random: Random) -> Made:
    """RGB, grey and CMYK, baseline and progressive, turned by EXIF or XMP."""
    orientation, options, what = _oriented(random)
    mode = str(random.choice(["RGB", "L", "CMYK"]))
    options |= {"quality": int(random.integers(88, 98)), "progressive": bool(random.integers(2))}
    if mode == "CMYK":
        ink = smooth(random, 4)
        content = _saved(Image.fromarray(ink, "CMYK"), "JPEG", **options)
        light = 255.0 - ink
        shown = (light[..., :3] * light[..., 3:] / 255.0 + 0.5).astype(np.uint8)
    else:
        content = _saved(Image.fromarray(smooth(random)).convert(mode), "JPEG", **options)
        shown = by_ffmpeg(content, "rgb24")[0]
    return Made(content, turned(shown, orientation)[None], f"{mode} {what}")


def _chunk(kind: bytes, body: bytes) -> bytes:
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
    orientation, options, what = _oriented(random)
    chunks = b""
    rgba = _png_pixels(values, bits)
    if color == 3:
        table = random.integers(0, 256, (1 << bits, 4), np.uint8)
        chunks += _chunk(b"PLTE", table[:, :3].tobytes())
        rgba = table[values[..., 0]]
        rgba[..., 3] = 255
    if color in (0, 2, 3) and random.integers(2):
        clear = values[random.integers(height), random.integers(width)]
        if color == 3:
            chunks += _chunk(b"tRNS", table[:, 3].tobytes())
            rgba[..., 3] = table[values[..., 0], 3]
        else:
            chunks += _chunk(b"tRNS", b"".join(struct.pack(">H", value) for value in clear))
            rgba[..., 3] = np.where((values == clear).all(axis=-1), 0, 255)
        what += " tRNS"
    if "exif" in options:
        chunks += _chunk(b"eXIf", options["exif"][6:])
    else:
        chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + options["xmp"])
    lines = values.reshape(height, -1)
    if bits == 16:
        rows = lines.astype(">u2").view(np.uint8).reshape(height, -1)
    else:
        shifts = np.arange(bits - 1, -1, -1)
        rows = np.packbits((lines[..., None] >> shifts & 1).reshape(height, -1), axis=1)
    data = np.insert(rows.astype(np.uint8), 0, 0, axis=1).tobytes()
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + chunks
    content += _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")
    if "tRNS" not in what:  # FFmpeg leaves it out for some depths
        assert np.abs(by_ffmpeg(content)[0].astype(int) - rgba).max() <= 1
    shown = on_white(rgba[..., :3], rgba[..., 3])
    return Made(content, turned(shown, orientation)[None], f"{name} {bits} bits {what}")


def _png_pixels(values: np.ndarray, bits: int) -> np.ndarray:
    """[H, W, 4] uint8 the colours of samples without a palette."""
    samples = values * (255 // ((1 << bits) - 1)) if bits < 16 else values >> 8
    channels = (0, 1, 2) if values.shape[2] > 2 else (0, 0, 0)
    alpha = samples[..., -1] if values.shape[2] in (2, 4) else np.full(samples.shape[:2], 255)
    return np.dstack([samples[..., channels], alpha]).astype(np.uint8)


def webp(random: Random) -> Made:
    """Lossy and lossless, with alpha or without, turned by EXIF or XMP."""
    orientation, options, what = _oriented(random)
    rgba = smooth(random, 4)
    lossless, has_alpha = bool(random.integers(2)), bool(random.integers(2))
    image = Image.fromarray(rgba if has_alpha else rgba[..., :3].copy())
    content = _saved(image, "WEBP", lossless=lossless, quality=95, exact=True, **options)
    shown = rgba[..., :3] if lossless else by_ffmpeg(content, "rgb24")[0]
    if has_alpha:
        shown = on_white(shown, rgba[..., 3])
    return Made(content, turned(shown, orientation)[None], f"{what} {lossless=} {has_alpha=}")


def gif(random: Random) -> Made:
    """Frames that leave some of the picture as it was, with a transparent colour or without."""
    frames = [Image.fromarray(smooth(random, least=40, most=41)).quantize(32)
              for _ in range(random.integers(1, 5))]  # fmt: skip
    options = {"transparency": int(random.integers(32))} if random.integers(2) else {}
    content = _saved(
        frames[0], "GIF", save_all=True, append_images=frames[1:], duration=200, optimize=False,
        disposal=int(random.integers(0, 3)), **options,
    )  # fmt: skip
    rgba = by_ffmpeg(content)
    return Made(content, on_white(rgba[..., :3], rgba[..., 3]), f"{len(frames)} frames {options}")


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
        content = _saved(image, "TIFF", tiffinfo={274: orientation}, **options)
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
    height, width, _ = rgb.shape
    data = (rgb.astype(np.uint16) * 257).astype(f"{order}u2").tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, None), (259, 3, 1), (262, 3, 2),
            (273, 4, 8), (274, 3, orientation), (277, 3, 3), (278, 3, height),
            (279, 4, len(data))]  # fmt: skip
    where = 8 + len(data)
    bits = where + 2 + 12 * len(tags) + 4
    directory = struct.pack(f"{order}H", len(tags))
    for tag, form, value in tags:
        directory += struct.pack(f"{order}HHI", tag, form, 3 if value is None else 1)
        value = bits if value is None else value
        directory += struct.pack(f"{order}HH" if form == 3 and tag != 258 else f"{order}I",
                                 *((value, 0) if form == 3 and tag != 258 else (value,)))  # fmt: skip
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, where)
    return head + data + directory + bytes(4) + struct.pack(f"{order}3H", 16, 16, 16)


def bmp(random: Random) -> Made:
    """1, 8, 24 and 32 bits; the fourth channel of 32 bits is alpha where one is not zero."""
    kind = str(random.choice(["RGB", "L", "1", "P", "RGBA", "unused alpha"]))
    values = smooth(random, 4)
    if kind in ("RGBA", "unused alpha"):
        if kind == "unused alpha":
            values[..., 3] = 0
        content = _bmp_with_alpha(values)
        rgb = values[..., :3]
        return Made(content, (rgb if kind != "RGBA" else on_white(rgb, values[..., 3]))[None], kind)
    image = Image.fromarray(values[..., :3].copy())
    image = image.quantize(64) if kind == "P" else image.convert(kind)
    content = _saved(image, "BMP")
    return Made(content, by_ffmpeg(content, "rgb24"), kind)


def _bmp_with_alpha(rgba: np.ndarray) -> bytes:
    """A bitmap with masks for red, green, blue and alpha (BITMAPV4HEADER)."""
    height, width, _ = rgba.shape
    data = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(data), 2835, 2835, 0, 0)
    head += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return (
        b"BM" + struct.pack("<IHHI", 14 + len(head) + len(data), 0, 0, 14 + len(head)) + head + data
    )


def _in_boxes(random: Random, code: Callable) -> Made:
    """One tile or four, turned and mirrored by boxes, with alpha, and EXIF that does not count."""
    columns = int(random.integers(1, 3))
    rgb = smooth(random, least=128 * columns, most=128 * columns + 60, step=2 * columns)
    if columns == 1:
        tiles, whole = [code(rgb)], None
    else:
        side_h, side_w = (-(-side // 4) * 2 for side in rgb.shape[:2])
        full = np.pad(rgb, [(0, 2 * side_h - len(rgb)), (0, 2 * side_w - rgb.shape[1]), (0, 0)])
        places = [(r, c) for r in (0, side_h) for c in (0, side_w)]
        tiles = [code(full[r : r + side_h, c : c + side_w].copy()) for r, c in places]
        whole = (rgb.shape[1], rgb.shape[0])
    rows = [
        np.concatenate([tile.rgb for tile in tiles[at : at + columns]], axis=1)
        for at in range(0, len(tiles), columns)
    ]
    shown = np.concatenate(rows)[: rgb.shape[0], : rgb.shape[1]]
    alpha = None
    if columns == 1 and random.integers(2):
        cover = np.repeat(smooth(random, 1, 300, 301)[: len(rgb), : rgb.shape[1]], 3, axis=-1)
        alpha = (
            coded_av1(cover, "L", "4:0:0")
            if tiles[0].kind == b"av01"
            else coded_hevc(cover, "gray")
        )
        shown = on_white(shown, alpha.rgb[..., 0])
    turns, mirror = int(random.integers(0, 4)), random.choice([None, 0, 1])
    exif = Image.Exif()
    exif[0x0112] = int(random.integers(1, 9))
    content = heif(
        tiles, columns=columns, size=whole, turns=turns, mirror=mirror, alpha=alpha,
        exif=exif.tobytes()[6:] if random.integers(2) else None,
    )  # fmt: skip
    shown = np.rot90(shown, turns)
    shown = {None: shown, 0: shown[::-1], 1: shown[:, ::-1]}[mirror]
    return Made(content, shown[None], f"{len(tiles)} tiles {turns=} {mirror=} alpha={bool(alpha)}")


def heic(random: Random) -> Made:
    return _in_boxes(random, coded_hevc)


def avif(random: Random) -> Made:
    return _in_boxes(random, coded_av1)


def animation(random: Random) -> Made:
    """WebP, PNG and AVIF that move, with alpha."""
    kind = str(random.choice(["WEBP", "PNG", "AVIF"]))
    frames = [smooth(random, 4, 40, 41) for _ in range(random.integers(2, 5))]
    options = {
        "WEBP": {"lossless": True, "exact": True},
        "AVIF": {"quality": 98, "subsampling": "4:4:4"},
    }
    has_default = kind == "PNG" and bool(random.integers(2))
    images = [Image.fromarray(frame) for frame in frames]
    if has_default:
        images.insert(0, Image.new("RGBA", images[0].size, "magenta"))
        options["PNG"] = {"default_image": True}
    content = _saved(
        images[0], kind, save_all=True, append_images=images[1:], duration=200, **options.get(kind, {})
    )  # fmt: skip
    rgba = np.stack(frames)
    return Made(content, on_white(rgba[..., :3], rgba[..., 3]), f"{kind} {has_default=}")


def icc(random: Random) -> Made:
    """Colours with a profile of red, green and blue or of grey, in each format that has profiles."""
    kind = str(random.choice(["PNG", "JPEG", "TIFF", "WEBP", "AVIF"]))
    gamma = float(random.choice([1.8, 2.2]))
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 98, "subsampling": "4:4:4"},
               "JPEG": {"quality": 98, "subsampling": 0}}.get(kind, {})  # fmt: skip
    values = smooth(random)
    if kind in ("PNG", "JPEG", "TIFF") and random.integers(2):
        image = Image.fromarray(values[..., 0].copy())
        shown = np.repeat(grey_in_srgb(values[..., :1], gamma), 3, axis=-1)
        content = _saved(image, kind, icc_profile=grey_profile(gamma), **options)
        return Made(content, shown[None], f"{kind} grey {gamma}")
    name = str(random.choice(list(PRIMARIES)))
    profile = rgb_profile(name, gamma)
    content = _saved(Image.fromarray(values), kind, icc_profile=profile, **options)
    return Made(content, in_srgb(values, name, gamma)[None], f"{kind} {name} {gamma}")


KINDS: Mapping[str, Callable[[Random], Made]] = {
    make.__name__: make for make in (jpeg, png, webp, gif, tiff, bmp, heic, avif, animation, icc)
}


def off(made: Made) -> float:
    """The mean difference of what is decoded from what a viewer shows; infinite for other sizes."""
    frames = decode_media(made.content, FrameSampling(num_frames=None, fps=5.0))
    if frames.rgb.shape != made.shown.shape:
        return float("inf")
    return float(np.abs(frames.rgb.astype(np.float64) - made.shown).mean())


def made(kind: str, number: int) -> Made:
    """The picture of a kind and a number, always the same."""
    return KINDS[kind](np.random.default_rng([number, *kind.encode()]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    options = parser.parse_args()
    for kind in options.kinds:
        found = {number: off(made(kind, number)) for number in range(options.files)}
        worst = max(found, key=found.__getitem__)
        wrong = [number for number, each in found.items() if each > 3.0]
        line = f"{kind}: {len(found)} files, {len(wrong)} off by more than 3: {wrong[:9]}; "
        sys.stdout.write(f"{line}worst {found[worst]:.2f} ({made(kind, worst).what})\n")
