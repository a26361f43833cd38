"""A picture of how busy each expert was: a row for each layer, a column for each expert.

White is the mean of the layer, red is more and blue is less, by powers of two up to four times.
"""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from parallel.experts.load import ExpertLoad

_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 78, 96, 64, 72
_ROW_PX, _GRID_PX = 18, 960  # of a layer's height, of all experts' width at most
_LEGEND_PX = 400
_MOST = 2.0  # powers of two at which colours end
_LESS, _MEAN, _MORE = (33, 102, 172), (247, 247, 247), (178, 24, 43)

Colour = tuple[int, int, int]


def draw_heat_map(load: ExpertLoad) -> Image.Image:
    """Draw a load of at least one layer."""
    num_experts = len(next(iter(load.values())))
    column_px = max(3, min(_ROW_PX, _GRID_PX // num_experts))
    width, height = column_px * num_experts, _ROW_PX * len(load)
    size = (_LEFT_PX + max(width, _LEGEND_PX) + _RIGHT_PX, _TOP_PX + height + _BOTTOM_PX)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    tokens = sum(int(each.sum()) for each in load.values()) / len(load)
    title = f"Tokens of each expert against the mean of its layer ({tokens:,.0f} a layer)"
    _text(draw, (_LEFT_PX, 12), title, "la", 15)
    _text(draw, (_LEFT_PX + width + 10, _TOP_PX - 8), "max / mean", "ls")
    for row, (layer, counts) in enumerate(sorted(load.items())):
        top = _TOP_PX + row * _ROW_PX
        relative = [count / max(counts.mean(), 1e-9) for count in counts.tolist()]
        _draw_row(draw, top, column_px, relative)
        middle = top + _ROW_PX // 2
        _text(draw, (_LEFT_PX - 8, middle), f"layer {layer}", "rm")
        _text(draw, (_LEFT_PX + width + 10, middle), f"{max(relative):.2f}", "lm")
    _number_columns(draw, num_experts, column_px)
    _draw_legend(draw, size[1] - _BOTTOM_PX + 22)
    return image


def _draw_row(
    draw: ImageDraw.ImageDraw, top: int, column_px: int, relative: Sequence[float]
) -> None:
    for column, value in enumerate(relative):
        left = _LEFT_PX + column * column_px
        gap = 1 if column_px > 6 else 0
        box = (left, top, left + column_px - 1 - gap, top + _ROW_PX - 2)
        draw.rectangle(box, fill=_colour(value))


def _number_columns(draw: ImageDraw.ImageDraw, num_experts: int, column_px: int) -> None:
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if step * column_px >= 28)
    for expert in range(0, num_experts, step):
        x = _LEFT_PX + expert * column_px + column_px // 2
        _text(draw, (x, _TOP_PX - 8), str(expert), "ms")
    _text(draw, (_LEFT_PX - 8, _TOP_PX - 8), "expert", "rs")


def _draw_legend(draw: ImageDraw.ImageDraw, top: int) -> None:
    left, right = _LEFT_PX, _LEFT_PX + _LEGEND_PX
    for x in range(_LEGEND_PX):
        power = (2 * x / (_LEGEND_PX - 1) - 1) * _MOST
        draw.line((left + x, top, left + x, top + 12), fill=_colour(2**power))
    draw.rectangle((left, top, right, top + 12), outline=(120, 120, 120))
    marks = [
        ("1/4 or less", "la"),
        ("1/2", "ma"),
        ("mean", "ma"),
        ("2 x", "ma"),
        ("4 x or more", "ra"),
    ]
    for number, (name, anchor) in enumerate(marks):
        _text(draw, (left + number * _LEGEND_PX // 4, top + 17), name, anchor)


def _colour(relative: float) -> Colour:
    power = math.log2(max(relative, 2**-_MOST)) / _MOST
    share = min(abs(power), 1.0)
    end = _MORE if power > 0 else _LESS
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(_MEAN, end, strict=True))
    return red, green, blue


def _text(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, size: int = 12
) -> None:
    draw.text(place, text, fill="black", font=ImageFont.load_default(size), anchor=anchor)
