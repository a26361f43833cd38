"""Samples of 1 to 32 bits -> 8 bits a channel, with the transparency of the file as alpha."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from pipeline.media.limits import MediaError
from pipeline.status import ErrorCode

_BITS_PER_SAMPLE, _PHOTOMETRIC, _EXTRA_SAMPLES = 258, 262, 338  # tags of TIFF 6.0
_WHITE_IS_ZERO = 0
_MOST_OUTSIDE = 0.01  # of the values of a picture of floats; more are no brightness from 0 to 1


def with_8_bits(picture: ImageFile.ImageFile) -> Image.Image:
    """Load the current page, and return it with at most 8 bits a channel.

    Raises:
        MediaError: its samples have no brightness that is known.
    """
    stored = str(picture.tile[0][3]) if picture.tile else ""  # loading empties the list
    picture.load()
    transparent = picture.info.get("transparency")
    if picture.mode.startswith("I;16"):
        return _from_16_bits(picture, transparent)
    if picture.mode == "F":
        return Image.fromarray(_as_displayed(picture, _from_floats(np.asarray(picture))))
    if picture.mode == "I":
        message = "samples of 32 bits, or with a sign, have no brightness that is known"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, f"{message}; scale them to 8 or 16 bits")
    if picture.format == "PNG" and transparent is not None:
        picture.info["transparency"] = _as_loaded(transparent, stored)
    if picture.mode in ("P", "PA") or picture.info.get("transparency") is not None:
        return picture.convert("RGBA")
    if picture.mode in ("La", "RGBa"):
        return picture.convert(picture.mode.upper())
    if picture.mode == "RGBA" and _is_unused_alpha(picture):
        return picture.convert("RGB")
    return picture


def _as_loaded(transparent: Any, stored: str) -> Any:
    """The transparent colour of a PNG in the values of its loaded pixels.

    Pillow scales pixels to 8 bits, but not this colour. `stored` is its name for the samples.
    """
    if stored in ("L;2", "L;4"):
        return transparent * {"L;2": 85, "L;4": 17}[stored]
    if stored == "RGB;16B":  # of the pixels the high bytes are left
        return tuple(value >> 8 for value in transparent)
    return transparent


def _from_16_bits(picture: Image.Image, transparent: object) -> Image.Image:
    """Take the high byte of each grey value of 16 bits, or of the 12 bits that a TIFF says."""
    values = np.asarray(picture)
    num_bits = 16
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        num_bits = picture.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
    grey = Image.fromarray(_as_displayed(picture, (values >> num_bits - 8).astype(np.uint8)))
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _from_floats(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Take 0 as black and 1 as white, as image editors do."""
    is_inside = (values >= 0.0) & (values <= 1.0)  # false for NaN
    if 1.0 - is_inside.mean() > _MOST_OUTSIDE:
        low, high = (float(bound(values)) for bound in (np.nanmin, np.nanmax))
        message = f"the samples are floats from {low:g} to {high:g}; scale them to 0 to 1"
        raise MediaError(ErrorCode.MEDIA_UNSUPPORTED, message)
    return (np.nan_to_num(values.clip(0.0, 1.0)) * 255.0 + 0.5).astype(np.uint8)


def _as_displayed(picture: Image.Image, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn black into white where the file says so; Pillow does that for 8 bits only."""
    is_tiff = isinstance(picture, TiffImagePlugin.TiffImageFile)
    is_inverted = is_tiff and picture.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    return 255 - grey if is_inverted else grey


def _is_unused_alpha(picture: Image.Image) -> bool:
    """Whether a fourth channel is zero throughout in a file that does not call it alpha.

    Windows writes bitmaps with such a channel, and shows them as opaque.
    """
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        is_named = _EXTRA_SAMPLES in picture.tag_v2
    else:
        is_named = picture.format != "BMP"
    return not is_named and picture.getchannel("A").getextrema() == (0, 0)
