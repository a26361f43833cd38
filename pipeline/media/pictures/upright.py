"""A page of an open picture -> 8-bit sRGB pixels as a viewer shows them, maybe with alpha.

    stored samples --> 8 bits --> sRGB --> turned and mirrored

It is then put on a background.
"""

import re
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from pipeline.media.pictures.colors import to_srgb
from pipeline.media.pictures.samples import with_8_bits

_METHODS = {  # TIFF 6.0, section 8, "Orientation"
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CLOCKWISE_DEGREES = {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}
_XMP_ORIENTATION = re.compile(r"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])")


@dataclass(frozen=True)
class Upright:
    """A page as a viewer shows it."""

    image: Image.Image  # RGB or RGBA, 8 bits, sRGB
    rotation: int  # degrees by which the stored page was turned, clockwise


def upright(picture: ImageFile.ImageFile) -> Upright:
    """Load the current page of a picture and make it upright."""
    # Pillow turns a TIFF itself when it loads it, and then forgets the tag.
    is_tiff = isinstance(picture, TiffImagePlugin.TiffImageFile)
    orientation = picture.getexif().get(ExifTags.Base.Orientation) if is_tiff else None
    image = to_srgb(with_8_bits(picture), picture)
    if orientation is None:
        orientation = _orientation(picture)
        if orientation in _METHODS:
            image = image.transpose(_METHODS[orientation])
    return Upright(image, _CLOCKWISE_DEGREES.get(orientation, 0))


def _orientation(picture: Image.Image) -> int:
    """The orientation by EXIF, or else by XMP; 1 is upright.

    AVIF and HEIC are turned by boxes of their own. Pillow gives those of an AVIF as EXIF, and
    libheif applies those of a HEIC; what EXIF or XMP of the file say does not count.
    """
    if picture.format == "HEIF":
        return 1
    # Pillow looks into XMP too, but not for all ways to write it.
    orientation = picture.getexif().get(ExifTags.Base.Orientation)
    if picture.format == "AVIF":
        return orientation if orientation and "exif" in picture.info else 1
    if orientation is None:
        xmp = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or ""
        text = xmp.decode("latin-1") if isinstance(xmp, bytes) else xmp
        found = _XMP_ORIENTATION.search(text)
        orientation = int(found[1]) if found else 1
    return orientation
