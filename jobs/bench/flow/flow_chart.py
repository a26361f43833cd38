"""Draw memory over time as a PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sample:
    """One sample of the memory of this machine."""

    seconds: float  # since the start
    num_bytes: Mapping[str, int]  # of the object store, and of each kind of process


def draw_chart(samples: Sequence[Sample], path: Path) -> None:
    """Draw all curves on the same axes, from zero on."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    seconds = [each.seconds for each in samples]
    for name in dict.fromkeys(name for each in samples for name in each.num_bytes):
        megabytes = [each.num_bytes.get(name, 0) / 1e6 for each in samples]
        axes.plot(seconds, megabytes, label=name)
    axes.set_xlabel("seconds")
    axes.set_ylabel("MB")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, format="png")
