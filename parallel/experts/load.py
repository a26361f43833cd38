"""How many tokens each expert has computed. This module does not import torch."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

ExpertLoad = Mapping[int, NDArray[np.int64]]  # layer -> [E] tokens of each routed expert


def add(loads: Iterable[ExpertLoad]) -> ExpertLoad:
    """Sum the loads of several ranks, groups or runs of the same network."""
    total: dict[int, NDArray[np.int64]] = {}
    for load in loads:
        for layer, tokens in load.items():
            total[layer] = tokens + total.get(layer, 0)
    return total
