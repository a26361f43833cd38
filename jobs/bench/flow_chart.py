"""A chart of memory over time, as a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_WIDTH_PX, _HEIGHT_PX, _MARGIN_PX = 900, 420, 60
_STORE_COLOUR, _RSS_COLOUR = (214, 39, 40), (31, 119, 180)


@dataclass(frozen=True)
class Sample:
    """One look at the machine."""

    seconds: float  # since the start
    store_bytes: int  # in the object store
    rss_bytes: int  # of all processes, without the object store


def draw_chart(samples: Sequence[Sample], path: Path) -> None:
    """Draw both curves over the same axes, from zero on."""
    image = Image.new("RGB", (_WIDTH_PX, _HEIGHT_PX), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(14)
    most_s = max(each.seconds for each in samples)
    most_bytes = 1.1 * max(max(each.store_bytes, each.rss_bytes) for each in samples)

    def place(seconds: float, num_bytes: float) -> tuple[float, float]:
        x = _MARGIN_PX + (_WIDTH_PX - 2 * _MARGIN_PX) * seconds / most_s
        y = _HEIGHT_PX - _MARGIN_PX - (_HEIGHT_PX - 2 * _MARGIN_PX) * num_bytes / most_bytes
        return x, y

    draw.line([place(0, most_bytes), place(0, 0), place(most_s, 0)], fill="black")
    for tenths in range(0, 11, 2):
        seconds, num_bytes = most_s * tenths / 10, most_bytes * tenths / 10
        x, y = place(seconds, 0)
        draw.text((x, y + 6), f"{seconds:.0f} s", fill="black", font=font, anchor="ma")
        x, y = place(0, num_bytes)
        draw.text((x - 6, y), f"{num_bytes / 1e6:.0f}", fill="black", font=font, anchor="rm")
    for name, colour, values, top in (
        ("object store, MB", _STORE_COLOUR, [each.store_bytes for each in samples], 20),
        ("memory of all processes, MB", _RSS_COLOUR, [each.rss_bytes for each in samples], 38),
    ):
        points = [place(s.seconds, value) for s, value in zip(samples, values, strict=True)]
        draw.line(points, fill=colour, width=2)
        draw.text((_MARGIN_PX + 12, top), name, fill=colour, font=font)
    image.save(path)
