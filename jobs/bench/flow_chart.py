"""A chart of memory over time, as a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sample:
    """One look at the machine."""

    seconds: float  # since the start
    store_bytes: int  # in the object store
    rss_bytes: int  # of all processes, without the object store


def draw_chart(samples: Sequence[Sample], path: Path) -> None:
    """Draw both curves over the same axes, from zero on."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    seconds = [each.seconds for each in samples]
    axes.plot(
        seconds, [each.store_bytes / 1e6 for each in samples], "tab:red", label="object store"
    )
    processes = [each.rss_bytes / 1e6 for each in samples]
    axes.plot(seconds, processes, "tab:blue", label="memory of all processes")
    axes.set_xlabel("seconds")
    axes.set_ylabel("MB")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, format="png")
