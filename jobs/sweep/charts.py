"""Draw the charts of a sweep: accuracy and cost against frames and tokens, tasks against frames."""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jobs.sweep.scores import Row

_AGAINST = {"mean_frames": "frames", "mean_visual_tokens": "visual tokens"}
_DPI = 110


def draw_sweep(summary: Sequence[Row], settings: Sequence[str], mode: str, chosen: int) -> bytes:
    """Draw accuracy and tokens against frames and visual tokens, as a PNG.

    A line joins the cells that differ in their frames only. `summary` is that of
    `scores.summarise`, and `chosen` is the index of the row to mark.
    """
    others = [
        name
        for name in settings
        if name not in ("frames", "fps") and len({row[name] for row in summary}) > 1
    ]
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in summary:
        lines[_label(row, others)].append(row)
    best = max(summary, key=lambda row: row[mode])
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2, squeeze=False)
    for column, (x, name) in enumerate(_AGAINST.items()):
        accuracy, cost = axes[0, column], axes[1, column]
        for number, (label, rows) in enumerate(lines.items()):
            own = sorted(rows, key=lambda row: row[x])
            style = {"marker": "o", "color": _colour(number, len(lines)), "label": label}
            across = [row[x] for row in own]
            errors = [row[f"{mode}_se"] for row in own]
            accuracy.errorbar(across, [row[mode] for row in own], errors, capsize=3, **style)
            cost.plot(across, [row["mean_tokens"] for row in own], **style)
        accuracy.axhspan(best[mode] - best[f"{mode}_se"], best[mode], color="0.92", zorder=0)
        for own_axes, y in ((accuracy, mode), (cost, "mean_tokens")):
            place = summary[chosen][x], summary[chosen][y]
            own_axes.plot(*place, "o", ms=15, mfc="none", mec="black", zorder=5)
        _finish(accuracy, name, f"accuracy ({mode}), with standard errors")
        _finish(cost, name, "tokens of prompt and answer")
        accuracy.set_ylim(0, 1.02)
    if others:
        axes[1, 0].legend(fontsize=8)
    title = "circle: the cheapest cell within one standard error of the best (grey band)"
    figure.suptitle(title, fontsize=10)
    return _png(figure)


def draw_tasks(answers: Sequence[Mapping[str, Any]], mode: str) -> bytes:
    """Draw the accuracy of each task against the number of frames, over all cells, as a PNG."""
    frames: dict[str, list[int]] = defaultdict(list)
    for answer in answers:
        if answer["num_frames"] is not None:
            frames[answer["cell"]].append(answer["num_frames"])
    seen = {cell: round(fmean(numbers), 1) for cell, numbers in frames.items()}
    scores: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        if answer["cell"] in seen and answer[mode] is not None:
            scores[answer["task"]][seen[answer["cell"]]].append(answer[mode])
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for number, (task, own) in enumerate(sorted(scores.items())):
        num_questions = len({answer["id"] for answer in answers if answer["task"] == task})
        across = sorted(own)
        axes.plot(
            across,
            [fmean(own[x]) for x in across],
            marker="o",
            color=_colour(number, len(scores)),
            label=f"{task or 'all'} ({num_questions} questions)",
        )
    _finish(axes, "frames", f"accuracy ({mode})")
    axes.set_ylim(0, 1.02)
    figure.legend(loc="outside right upper", fontsize=9)
    return _png(figure)


def _colour(number: int, many: int) -> Any:
    if many <= 10:
        return mpl.colormaps["tab10"](number)
    return mpl.colormaps["viridis"](number / (many - 1))


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: Row, names: Sequence[str]) -> str:
    text = ", ".join(f"{name}={row[name]}" for name in names).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}..."


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=_DPI, format="png")
    return file.getvalue()
