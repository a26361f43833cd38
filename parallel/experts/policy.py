"""Which dispatcher a step uses, and why. This module does not import torch: drivers use it too.

| `--dispatch` | dispatcher |
|---|---|
| `all_to_all` | always all-to-all |
| `all_gather` | always all-gather |
| `auto` | depends on the step; see `choose` |
"""

from dataclasses import dataclass
from typing import Literal

DispatchChoice = Literal["auto", "all_to_all", "all_gather"]
WireDtype = Literal["auto", "bfloat16", "float8"]


@dataclass(frozen=True)
class Exchange:
    """How the ranks of a group pass tokens to each other."""

    dispatch: DispatchChoice = "auto"
    wire_dtype: WireDtype = "auto"  # of rows between ranks; see `parallel.experts.wire`


# With so few ranks, an all-gather moves about as many bytes in a decode as the all-to-all does, and
# it saves one exchange and one wait for the device. This limit is counted, not measured: nobody has
# run `jobs.bench.dispatch --device cuda` yet (BENCHMARKS.md).
_MAX_GATHERING_RANKS = 4


def choose(
    choice: DispatchChoice, *, is_decode: bool, num_ranks: int, device: str
) -> DispatchChoice:
    """Return `all_to_all` or `all_gather` for a step.

    `auto` takes the all-gather for decodes of few ranks on GPUs, where waiting for the device costs
    more than the bytes. It never takes it on CPUs, where gloo's all-to-all is the faster
    collective.
    """
    if choice != "auto":
        return choice
    gathers = device == "cuda" and is_decode and num_ranks <= _MAX_GATHERING_RANKS
    return "all_gather" if gathers else "all_to_all"


def explain(exchange: Exchange, num_ranks: int, device: str) -> str:
    """Describe in words what `choose` will do, and in which dtype rows cross ranks."""
    if num_ranks == 1:
        return "dispatch local: one rank holds all experts"
    wire = "" if exchange.wire_dtype == "auto" else f"; rows travel as {exchange.wire_dtype}"
    return _explain_choice(exchange.dispatch, num_ranks, device) + wire


def _explain_choice(choice: DispatchChoice, num_ranks: int, device: str) -> str:
    if choice != "auto":
        return f"dispatch {choice}: as asked"
    if device == "cpu":
        return "dispatch all_to_all (auto): gloo's all-to-all is its fastest exchange"
    if num_ranks > _MAX_GATHERING_RANKS:
        return f"dispatch all_to_all (auto): fewest bytes with {num_ranks} ranks, by count"
    return (
        "dispatch all_to_all for prompts, all_gather for decodes (auto): fewest bytes, and no wait "
        "for the device; counted, not measured on GPUs: see jobs.bench.dispatch, choose --dispatch"
    )
