"""Draws how busy each expert was: a row for each layer, a column for each expert.

White is the mean of the layer, red is more and blue is less, by powers of two up to four times.
"""

from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from parallel.experts.load import ExpertLoad

_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 78, 96, 64, 72  # margins
_ROW_PX, _MAX_WIDTH_PX = 18, 960  # height of a layer; width of all experts
_MIN_WIDTH_PX = 500  # between the margins, so that the title fits
_LEGEND_WIDTH_PX, _LEGEND_HEIGHT_PX = 400, 12
_DPI = 100
_MAX_POWER = 2.0  # of two, at which colours end
_LESS, _MEAN, _MORE = "#2166ac", "#f7f7f7", "#b2182b"  # readable by the colour-blind
_LEGEND = {-2: "1/4 or less", -1: "1/2", 0: "mean", 1: "2 x", 2: "4 x or more"}


def heat_map_png(load: ExpertLoad) -> bytes:
    """Draw a load of at least one layer as a PNG picture."""
    tokens = np.array([load[layer] for layer in sorted(load)], np.float64)  # [layers, E]
    num_layers, num_experts = tokens.shape
    column_px = max(3, min(_ROW_PX, _MAX_WIDTH_PX // num_experts))
    width_px, height_px = column_px * num_experts, _ROW_PX * num_layers
    figure = Figure(
        figsize=(
            (_LEFT_PX + max(width_px, _MIN_WIDTH_PX) + _RIGHT_PX) / _DPI,
            (_TOP_PX + height_px + _BOTTOM_PX) / _DPI,
        ),
        dpi=_DPI,
    )
    figure.text(
        *_fraction(figure, _LEFT_PX, 20),
        "Tokens of each expert against the mean of its layer "
        f"({tokens.sum() / num_layers:,.0f} a layer)",
        fontsize=11,
        verticalalignment="center",
    )
    relative = tokens / np.maximum(tokens.mean(axis=1, keepdims=True), 1e-9)
    axes = _axes(figure, _TOP_PX, width_px, height_px)
    _draw_cells(axes, relative, column_px)
    _label(axes, sorted(load), relative, column_px)
    legend = _axes(figure, _TOP_PX + height_px + 22, _LEGEND_WIDTH_PX, _LEGEND_HEIGHT_PX)
    bar = figure.colorbar(axes.collections[0], cax=legend, orientation="horizontal")
    bar.set_ticks(list(_LEGEND), labels=list(_LEGEND.values()), fontsize=9)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_cells(axes: Axes, relative: NDArray[np.float64], column_px: int) -> None:
    axes.pcolormesh(
        np.log2(np.maximum(relative, 2**-_MAX_POWER)),
        cmap=LinearSegmentedColormap.from_list("load", [_LESS, _MEAN, _MORE]),
        vmin=-_MAX_POWER,
        vmax=_MAX_POWER,
        edgecolors="white" if column_px > 6 else "none",  # lines would hide narrow columns
        linewidth=0.5,
    )
    axes.invert_yaxis()  # the first layer is at the top
    axes.spines[:].set_visible(False)


def _label(axes: Axes, layers: list[int], relative: NDArray[np.float64], column_px: int) -> None:
    """Name layers at the left, experts at the top, and give each layer's maximum at the right."""
    rows = np.arange(len(layers)) + 0.5
    axes.set_yticks(rows, [f"layer {layer}" for layer in layers])
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if step * column_px >= 28)
    experts = np.arange(0, relative.shape[1], step)
    axes.set_xticks(experts + 0.5, list(map(str, experts)))
    axes.xaxis.tick_top()
    maxima = axes.secondary_yaxis("right")
    maxima.set_yticks(rows, [f"{value:.2f}" for value in relative.max(axis=1)])
    maxima.spines[:].set_visible(False)
    for each in (axes, maxima):
        each.tick_params(length=0, labelsize=9)
    places = {"expert": (-8, "right"), "max / mean": (column_px * relative.shape[1] + 8, "left")}
    for text, (x_px, side) in places.items():
        axes.annotate(
            text,
            xy=(0, 1),
            xycoords="axes fraction",
            xytext=(x_px * 72 / _DPI, 4),
            textcoords="offset points",
            horizontalalignment=side,
            fontsize=9,
        )


def _axes(figure: Figure, top_px: int, width_px: int, height_px: int) -> Axes:
    """Add axes at the left margin of a figure, at a place in pixels from its top."""
    left, bottom = _fraction(figure, _LEFT_PX, top_px + height_px)
    width, top = _fraction(figure, width_px, height_px)
    return figure.add_axes((left, bottom, width, 1 - top))


def _fraction(figure: Figure, x_px: float, y_px: float) -> tuple[float, float]:
    """Convert pixels from the upper left corner to fractions from the lower left one."""
    width, height = figure.get_size_inches() * _DPI
    return x_px / width, 1 - y_px / height
