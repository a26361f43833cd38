"""`Capacity`: how much an engine takes on at a time, and why: its batch, its cache, its steps.

What the user left open follows from the device:

    batch  by the memory of the card, `default_batch_size`
    cache  0.9 of the card, less what is in use and what a worst-case step takes, `cache_bytes`

    |<------------------------------------ card ------------------------------------>|
    |<----------------------------- 0.9 of the card ----------------------->|  slack  |
    | used: weights, CUDA, NCCL | worst-case step | features, graphs | cache |

The slack is for the allocator's fragments and for what no measurement at the start can see. This
module needs no torch, since drivers and planners do this arithmetic too.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Self, get_type_hints

GIB = 1 << 30
CPU_BATCH_SIZE = 32  # sequences
CPU_CACHE_GIB = 4.0
CARD_SHARE = 0.9  # of its memory that an engine takes by itself
MORE_ROOM = (
    "lower --max-step-tokens, --max-vision-patches or --batch-size, share the experts among more "
    "ranks (--expert-parallel), or end what else uses the card"
)

# Cards sold with so many GB (1e9 bytes) get so many sequences.
_BATCH_SIZES = ((80, 256), (48, 128), (24, 64))
_LEAST_BATCH_SIZE = 32
_TRUE_SIZE = 0.9  # a card reports somewhat less memory than it is sold with
# For the driver's own copies of captured graphs. A guess: no graph has been captured on a GPU yet.
_GRAPHS_GIB = 1.0
_NUMBER = "capacity_"  # how the names of `Capacity.numbers` begin


def default_batch_size(device: str, card_bytes: int | None = None) -> int:
    """Return how many sequences generate together where nobody says it.

    `device` is "cpu" or begins with "cuda". Without the size of the card it is the most that any
    card gets, so that what is sized by it suffices for all cards.
    """
    if not device.startswith("cuda"):
        return CPU_BATCH_SIZE
    if card_bytes is None:
        return _BATCH_SIZES[0][1]
    for sold_gb, batch_size in _BATCH_SIZES:
        if card_bytes >= _TRUE_SIZE * sold_gb * 1e9:
            return batch_size
    return _LEAST_BATCH_SIZE


@dataclass(frozen=True)
class StepMemory:
    """What a worst-case step showed of the memory of a card, in bytes."""

    card: int  # all of it
    used: int  # when the step is over, by everything: weights, CUDA, NCCL, other processes
    step: int  # what the step took beyond that at its peak


def kept_bytes(feature_cache_gib: float, *, has_graphs: bool) -> int:
    """Return what an engine comes to hold later, beside the cache: image features and graphs."""
    return int((feature_cache_gib + (_GRAPHS_GIB if has_graphs else 0.0)) * GIB)


def cache_bytes(memory: StepMemory, kept: int, sequence_bytes: int) -> int:
    """Return what is left of a card for the cache.

    `kept` is `kept_bytes`, and `sequence_bytes` what one sequence of the greatest length takes.
    Raises ValueError: not even that is left.
    """
    left = int(CARD_SHARE * memory.card) - memory.used - memory.step - kept
    if left >= sequence_bytes:
        return left
    hundredths = left * 100 // GIB  # rounded down, so that they do fit
    smaller = f"give --cache-gib {hundredths / 100:g}, which longer prompts do not fit into; or "
    remedy = f"{smaller * (hundredths > 0)}{MORE_ROOM}"
    raise ValueError(
        f"{left / GIB:.2f} GiB are left for the cache, and one sequence of the greatest length "
        f"takes {sequence_bytes / GIB:.2f}: {CARD_SHARE:g} of the card's {memory.card / GIB:.2f} "
        f"GiB, less {memory.used / GIB:.2f} in use, {memory.step / GIB:.2f} of a worst-case step "
        f"and {kept / GIB:.2f} for image features and CUDA graphs; {remedy}"
    )


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What an engine takes on at a time. Of what was not measured, the GiB are 0."""

    batch_size: int  # sequences
    cache_gib: float
    cache_tokens: int
    step_tokens: int
    vision_patches: int  # of a vision call
    is_batch_given: bool  # by the user
    is_cache_given: bool
    card_gib: float = 0.0  # 0 on CPUs
    used_gib: float = 0.0
    step_gib: float = 0.0
    kept_gib: float = 0.0

    def numbers(self) -> dict[str, float]:
        """Return it as numbers, as ranks tell them; `of` makes it of them again."""
        return {_NUMBER + name: float(value) for name, value in asdict(self).items()}

    @classmethod
    def of(cls, numbers: Mapping[str, float]) -> Self | None:
        """Find it among the numbers of a rank; None if this engine does not tell it."""
        if f"{_NUMBER}batch_size" not in numbers:
            return None
        kinds = get_type_hints(cls)
        return cls(**{name: kind(numbers[_NUMBER + name]) for name, kind in kinds.items()})

    def __str__(self) -> str:
        batch = f"batches of {self.batch_size} sequences ({self._why_batch()})"
        cache = f"cache of {self.cache_gib:.4g} GiB, {self.cache_tokens} tokens"
        return (
            f"{batch}; {cache} ({self._why_cache()}); steps of {self.step_tokens} tokens; vision "
            f"calls of {self.vision_patches} patches"
        )

    def _why_batch(self) -> str:
        if self.is_batch_given:
            return "as asked"
        return f"for a card of {self.card_gib:.1f} GiB" if self.card_gib else "the default on CPUs"

    def _why_cache(self) -> str:
        if self.is_cache_given:
            return "as asked"
        if not self.card_gib:
            return "the default on CPUs"
        return (
            f"{CARD_SHARE:g} of the card, less {self.used_gib:.1f} GiB in use, {self.step_gib:.1f} "
            f"of a worst-case step and {self.kept_gib:.1f} for image features and CUDA graphs"
        )
