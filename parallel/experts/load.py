"""How many tokens each expert has computed: which are hot, and which are idle. No torch."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

ExpertLoad = Mapping[int, NDArray[np.int64]]  # by layer: [E] tokens of each routed expert


def add(loads: Iterable[ExpertLoad]) -> ExpertLoad:
    """The sum of loads of the same network."""
    total: dict[int, NDArray[np.int64]] = {}
    for load in loads:
        for layer, tokens in load.items():
            total[layer] = tokens + total.get(layer, 0)
    return total
