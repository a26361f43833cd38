"""What the makers of pictures share: random pixels, orientations, FFmpeg, and blending on white."""

import io
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from PIL import Image

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
        assert isinstance(container, InputContainer)
        return np.stack([f.to_ndarray(format=pixel_format) for f in container.decode(video=0)])


def saved(image: Image.Image, kind: str, **options) -> bytes:
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


def oriented(random: Random) -> tuple[int, dict[str, Any], str]:
    """An orientation, in EXIF or in XMP, as options of Pillow's writers."""
    orientation = int(random.integers(0, 10))
    if random.random() < 0.3 and 1 <= orientation <= 8:
        return orientation, {"xmp": _xmp(orientation, random)}, f"XMP {orientation}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    return orientation, {"exif": exif.tobytes()}, f"EXIF {orientation}"
