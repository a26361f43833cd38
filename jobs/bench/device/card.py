"""Measure what a card can do at most: bfloat16 products, and copies within its memory.

Both are measured beside each part of the benchmark, because a card slows down when it is warm.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch

from jobs.bench.device.clock import timed_on

_REPEATS = 10
_SIDE = 8192  # of the square matrices: large enough that any card reaches its rate
_COPY_BYTES = 1 << 29  # more than the caches of a card hold
_SMALL_SIDE, _SMALL_COPY_BYTES = 128, 1 << 20  # where the numbers mean nothing


@dataclass
class Card:
    """One device; each measurement of a rate is kept, and the report has their medians."""

    device: torch.device
    product_rates: list[float] = field(default_factory=list)  # floating point operations per second
    copy_rates: list[float] = field(default_factory=list)  # bytes per second

    def __post_init__(self) -> None:
        is_gpu = self.device.type == "cuda"
        side = _SIDE if is_gpu else _SMALL_SIDE
        num_bytes = _COPY_BYTES if is_gpu else _SMALL_COPY_BYTES
        self._factors = torch.ones(2, side, side, dtype=torch.bfloat16, device=self.device)
        self._product = torch.empty_like(self._factors[0])
        self._copies = torch.zeros(2, num_bytes, dtype=torch.uint8, device=self.device)
        self._multiply()
        self._copy()

    @property
    def name(self) -> str:
        """The name of the card, or `cpu`."""
        is_gpu = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if is_gpu else self.device.type

    def flops_per_s(self) -> float:
        """Measure now the rate of a square bfloat16 product: 2 n^3 operations by its seconds."""
        side = len(self._product)
        self.product_rates.append(2 * side**3 / self._seconds(self._multiply))
        return self.product_rates[-1]

    def bytes_per_s(self) -> float:
        """Measure now the rate of a copy within the memory; each byte is read and written."""
        num_bytes = self._copies[0].nbytes
        self.copy_rates.append(2 * num_bytes / self._seconds(self._copy))
        return self.copy_rates[-1]

    def limits(self) -> dict[str, float]:
        """Return the medians of what was measured, in TFLOP/s and GB/s."""
        return {
            "bf16_tflops": float(f"{median(self.product_rates) / 1e12:.4g}"),
            "copy_gbs": float(f"{median(self.copy_rates) / 1e9:.4g}"),
        }

    def _multiply(self) -> None:
        torch.mm(self._factors[0], self._factors[1], out=self._product)

    def _copy(self) -> None:
        self._copies[1].copy_(self._copies[0])

    def _seconds(self, work: Callable[[], None]) -> float:
        return timed_on(self.device, lambda: [work() for _ in range(_REPEATS)]) / _REPEATS
