"""Draw a PNG that shows the frames that a model saw, and its captions.

There is one row per clip: some of its frames with their times, beside its title, the caption and
the truth, if known. Captions are untrusted text: characters that the font lacks are replaced.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_MAX_FRAMES = 6
_FRAME_PX = (150, 116)  # the box into which each frame is fitted
_GAP_PX = 6
_MARGIN_PX = 28
_PADDING_PX = 16  # around the content of a row
_TEXT_PX = 470  # width of the text column
_LINE_PX = 21
_MAX_LINES = 4  # of a caption
_MAX_CHARACTERS = 1000  # of a caption: more than fit

_PAPER = (250, 250, 248)
_CARD = (255, 255, 255)
_RULE = (226, 226, 222)
_INK = (28, 28, 30)
_FAINT = (130, 130, 128)
_TRUTH = (20, 110, 70)

_FRAMES_PX = _MAX_FRAMES * (_FRAME_PX[0] + _GAP_PX)
_WIDTH_PX = 2 * (_MARGIN_PX + _PADDING_PX) + _FRAMES_PX + _PADDING_PX + _TEXT_PX
_TIMES_PX = 20  # height of the line below the frames


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """The frames and texts of one clip."""

    frames: NDArray[np.uint8]  # [I, H, W, 3] RGB; I may be 0
    times_s: NDArray[np.float64]  # [I]
    title: str
    caption: str
    truth: str = ""  # "" if unknown

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[3] != 3:
            raise ValueError(f"frames must be [I, H, W, 3], got {self.frames.shape}")
        if len(self.frames) != len(self.times_s):
            raise ValueError(f"{len(self.times_s)} times do not fit {len(self.frames)} frames")


def write_contact_sheet(path: Path, rows: Sequence[SheetRow]) -> None:
    """Draw `rows` from top to bottom and write the PNG file `path`.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("a contact sheet needs rows, got none")
    texts = [_lines(row) for row in rows]
    heights_px = [_height_px(row, lines) for row, lines in zip(rows, texts, strict=True)]
    height_px = 2 * _MARGIN_PX + sum(heights_px) + _GAP_PX * 2 * (len(rows) - 1)
    sheet = Image.new("RGB", (_WIDTH_PX, height_px), _PAPER)
    top = _MARGIN_PX
    for row, lines, row_px in zip(rows, texts, heights_px, strict=True):
        _draw_row(sheet, row, lines, top, row_px)
        top += row_px + _GAP_PX * 2
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)


@dataclass(frozen=True)
class _Line:
    text: str
    size: int
    colour: tuple[int, int, int]


def _lines(row: SheetRow) -> list[_Line]:
    lines = [_Line(text, 13, _FAINT) for text in _wrap(row.title, 13, 1)]
    lines += [_Line(text, 17, _INK) for text in _wrap(row.caption or "(no caption)", 17)]
    if row.truth:
        lines += [_Line(text, 14, _TRUTH) for text in _wrap(f"truth: {row.truth}", 14)]
    return lines


def _height_px(row: SheetRow, lines: Sequence[_Line]) -> int:
    return 2 * _PADDING_PX + max(_frames_height_px(row) + _TIMES_PX, len(lines) * _LINE_PX)


def _frames_height_px(row: SheetRow) -> int:
    """Return the height of the frames of a row, in pixels."""
    _, height, width, _ = row.frames.shape
    return min(_FRAME_PX[1], max(1, round(_FRAME_PX[0] * height / width)))


def _draw_row(
    sheet: Image.Image, row: SheetRow, lines: Sequence[_Line], top: int, height_px: int
) -> None:
    draw = ImageDraw.Draw(sheet)
    box = (_MARGIN_PX, top, _WIDTH_PX - _MARGIN_PX, top + height_px)
    draw.rounded_rectangle(box, radius=8, fill=_CARD, outline=_RULE)
    left, top = _MARGIN_PX + _PADDING_PX, top + _PADDING_PX
    if len(row.frames) == 0:
        _write(draw, (left, top + _LINE_PX / 2), _Line("no frames", 13, _FAINT), "lm")
    for column, index in enumerate(_chosen(len(row.frames))):
        x = left + column * (_FRAME_PX[0] + _GAP_PX)
        _paste(sheet, row.frames[index], (x, top), _frames_height_px(row))
        centre = x + _FRAME_PX[0] / 2, top + _frames_height_px(row) + _TIMES_PX / 2
        _write(draw, centre, _Line(f"{row.times_s[index]:.2f} s", 12, _FAINT), "mm")
    for number, line in enumerate(lines):
        middle = top + number * _LINE_PX + _LINE_PX / 2
        _write(draw, (left + _FRAMES_PX + _PADDING_PX, middle), line, "lm")


def _chosen(num_frames: int) -> list[int]:
    """Return the indices of the frames that fit, with the first and the last among them."""
    if num_frames <= _MAX_FRAMES:
        return list(range(num_frames))
    return np.linspace(0, num_frames - 1, _MAX_FRAMES).round().astype(int).tolist()


def _paste(
    sheet: Image.Image, rgb: NDArray[np.uint8], corner: tuple[int, int], height_px: int
) -> None:
    """Fit a frame into its box, centred."""
    frame = Image.fromarray(np.ascontiguousarray(rgb))
    scale = min(_FRAME_PX[0] / frame.width, height_px / frame.height)
    size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    x, y = corner[0] + (_FRAME_PX[0] - size[0]) // 2, corner[1] + (height_px - size[1]) // 2
    sheet.paste(frame.resize(size, Image.Resampling.LANCZOS), (x, y))
    ImageDraw.Draw(sheet).rectangle((x, y, x + size[0] - 1, y + size[1] - 1), outline=_RULE)


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], line: _Line, anchor: str) -> None:
    font = ImageFont.load_default(line.size)
    draw.text(place, line.text, font=font, fill=line.colour, anchor=anchor)


def _wrap(text: str, size: int, max_lines: int = _MAX_LINES) -> list[str]:
    """Break a text into lines of the column; end with dots if it does not fit."""
    font = ImageFont.load_default(size)
    rest = " ".join(_drawable(text).split())
    lines: list[str] = []
    while rest and len(lines) < max_lines:
        too_long = (n for n in range(2, len(rest) + 1) if font.getlength(rest[:n]) > _TEXT_PX)
        end = next(too_long, len(rest) + 1) - 1
        if end < len(rest) and " " in rest[: end + 1]:  # else a single word is too long
            end = rest.rindex(" ", 0, end + 1)
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        lines[-1] = lines[-1][:-3].rstrip() + "..."
    return lines


def _drawable(text: str) -> str:
    """Return the beginning of a text in ASCII: Pillow's own font has no other characters."""
    letters = unicodedata.normalize("NFKD", text[:_MAX_CHARACTERS])
    bare = (each for each in letters if not unicodedata.combining(each))
    return "".join(
        each if " " <= each <= "~" else "?" if each.isprintable() else " " for each in bare
    )
