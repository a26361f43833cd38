"""Pictures made at random, each with the pixels that a viewer shows, found without our decoders.

What a file holds is known where it is written: lossless pixels are the truth themselves, and FFmpeg
decodes the others. How they are turned, put on white and coloured is numpy, by the standards.

    python -m tests.pipeline.media.pictures.made --files 200

prints for each kind how far the worst file is off.
"""

import argparse
import sys
from collections.abc import Callable, Mapping

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
from tests.pipeline.media.pictures.making import (
    Made,
    Random,
    by_ffmpeg,
    on_white,
    oriented,
    saved,
    smooth,
    turned,
)
from tests.pipeline.media.pictures.png_files import png
from tests.pipeline.media.pictures.tiff_files import bmp, tiff


def jpeg(random: Random) -> Made:
    """RGB, grey and CMYK, baseline and progressive, turned by EXIF or XMP."""
    orientation, options, what = oriented(random)
    mode = str(random.choice(["RGB", "L", "CMYK"]))
    options |= {"quality": int(random.integers(88, 98)), "progressive": bool(random.integers(2))}
    if mode == "CMYK":
        ink = smooth(random, 4)
        content = saved(Image.fromarray(ink, "CMYK"), "JPEG", **options)
        light = 255.0 - ink
        shown = (light[..., :3] * light[..., 3:] / 255.0 + 0.5).astype(np.uint8)
    else:
        content = saved(Image.fromarray(smooth(random)).convert(mode), "JPEG", **options)
        shown = by_ffmpeg(content, "rgb24")[0]
    return Made(content, turned(shown, orientation)[None], f"{mode} {what}")


def webp(random: Random) -> Made:
    """Lossy and lossless, with alpha or without, turned by EXIF or XMP."""
    orientation, options, what = oriented(random)
    rgba = smooth(random, 4)
    lossless, has_alpha = bool(random.integers(2)), bool(random.integers(2))
    image = Image.fromarray(rgba if has_alpha else rgba[..., :3].copy())
    content = saved(image, "WEBP", lossless=lossless, quality=95, exact=True, **options)
    shown = rgba[..., :3] if lossless else by_ffmpeg(content, "rgb24")[0]
    if has_alpha:
        shown = on_white(shown, rgba[..., 3])
    return Made(content, turned(shown, orientation)[None], f"{what} {lossless=} {has_alpha=}")


def gif(random: Random) -> Made:
    """Frames that leave some of the picture as it was, with a transparent colour or without."""
    frames = [Image.fromarray(smooth(random, least=40, most=41)).quantize(32)
              for _ in range(random.integers(1, 5))]  # fmt: skip
    options = {"transparency": int(random.integers(32))} if random.integers(2) else {}
    content = saved(
        frames[0], "GIF", save_all=True, append_images=frames[1:], duration=200, optimize=False,
        disposal=int(random.integers(0, 3)), **options,
    )  # fmt: skip
    rgba = by_ffmpeg(content)
    return Made(content, on_white(rgba[..., :3], rgba[..., 3]), f"{len(frames)} frames {options}")


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
    turns, mirror = int(random.integers(0, 4)), (None, 0, 1)[random.integers(3)]
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
    content = saved(
        images[0], kind, save_all=True, append_images=images[1:], duration=200,
        **options.get(kind, {}),
    )  # fmt: skip
    rgba = np.stack(frames)
    return Made(content, on_white(rgba[..., :3], rgba[..., 3]), f"{kind} {has_default=}")


def icc(random: Random) -> Made:
    """Colours with a profile of three primaries or of grey, in each format that has profiles."""
    kind = str(random.choice(["PNG", "JPEG", "TIFF", "WEBP", "AVIF"]))
    gamma = float(random.choice([1.8, 2.2]))
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 98, "subsampling": "4:4:4"},
               "JPEG": {"quality": 98, "subsampling": 0}}.get(kind, {})  # fmt: skip
    values = smooth(random)
    if kind in ("PNG", "JPEG", "TIFF") and random.integers(2):
        image = Image.fromarray(values[..., 0].copy())
        shown = np.repeat(grey_in_srgb(values[..., :1], gamma), 3, axis=-1)
        content = saved(image, kind, icc_profile=grey_profile(gamma), **options)
        return Made(content, shown[None], f"{kind} grey {gamma}")
    name = str(random.choice(list(PRIMARIES)))
    profile = rgb_profile(name, gamma)
    content = saved(Image.fromarray(values), kind, icc_profile=profile, **options)
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
