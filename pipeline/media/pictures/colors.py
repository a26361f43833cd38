"""Colours of a picture -> sRGB, by its ICC profile or, for AVIF and HEIC, its transfer function."""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageCms

from pipeline.media.hdr import HDR_TRANSFERS, to_sdr

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}  # of the profile of a mode
_STRIP_ROWS = 256  # that are converted at a time, since floats take much memory


def to_srgb(image: Image.Image, picture: Image.Image) -> Image.Image:
    """Convert the 8-bit page of a picture to RGB or RGBA in sRGB.

    A picture without a profile is sRGB. A profile that is broken, or of another kind of colours
    than the picture, is ignored, as browsers do.
    """
    transfer = _transfer(picture)
    if transfer in HDR_TRANSFERS:
        return _from_hdr(image, transfer)
    icc = picture.info.get("icc_profile")
    if not icc and image.mode in ("RGB", "RGBA"):
        return image
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    if image.mode not in _SPACES:  # to the next mode that a profile can describe
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    rgb = _by_profile(image, icc)
    if alpha is not None:
        rgb.putalpha(alpha)
    return rgb


def _by_profile(image: Image.Image, icc: bytes | None) -> Image.Image:
    try:
        if image.mode == "LAB":
            lab = ImageCms.createProfile("LAB", colorTemp=5000)  # D50, as TIFF 6.0 has it
            return _apply(ImageCms.ImageCmsProfile(lab), image)
        if icc:
            profile = ImageCms.getOpenProfile(io.BytesIO(icc))
            if icc[16:20].decode("latin-1").strip() == _SPACES[image.mode]:  # ICC.1, 7.2.8
                return _apply(profile, image)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        pass
    return image.convert("RGB")


def _apply(profile: ImageCms.ImageCmsProfile, image: Image.Image) -> Image.Image:
    transform = ImageCms.buildTransform(profile, _srgb(), image.mode, "RGB")
    probe = _probe(image.mode)
    if probe is not None:
        moved = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
        if abs(moved - np.asarray(probe)).max() <= 1:  # the profile of most pictures is sRGB
            return image
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@cache
def _probe(mode: str) -> Image.Image | None:
    """Colours all over the cube, by which a transform that changes nothing is told; RGB only."""
    if mode != "RGB":
        return None
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1)  # [9, 9, 9, 3]
    return Image.fromarray(cube.reshape(9, 81, 3))


def _transfer(picture: Image.Image) -> int:
    """The number of the transfer function (ITU-T H.273); 0 if the file names none."""
    return int(picture.info.get("nclx_profile", {}).get("transfer_characteristics", 0))


def _from_hdr(image: Image.Image, transfer: int) -> Image.Image:
    rgb = np.array(image.convert("RGB"))
    for top in range(0, len(rgb), _STRIP_ROWS):
        strip = rgb[top : top + _STRIP_ROWS]
        strip[:] = to_sdr(strip * np.uint16(257), transfer)
    shown = Image.fromarray(rgb)
    if image.mode == "RGBA":
        shown.putalpha(image.getchannel("A"))
    return shown
