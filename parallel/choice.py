"""Which dispatcher a step uses, and why; without torch, since drivers ask too.

| `--dispatch` | |
|---|---|
| `all_to_all` | always |
| `all_gather` | always |
| `auto` | see `choose` |
"""

from typing import Literal

DispatchChoice = Literal["auto", "all_to_all", "all_gather"]

# Up to so many ranks a decode's bytes by all-gather are near those of the all-to-all, which has one
# exchange and one wait for the device more. Counted, not measured: nobody has run
# `jobs.bench_dispatch --device cuda` yet (BENCHMARKS.md).
_MAX_GATHERING_RANKS = 4


def choose(
    choice: DispatchChoice, *, is_decode: bool, num_ranks: int, device: str
) -> DispatchChoice:
    """`all_to_all` or `all_gather` for a step.

    `auto` takes all_gather for decodes of few ranks on GPUs, where a wait for the device costs more
    than bytes; on CPUs, where gloo's all-to-all is the faster collective, never.
    """
    if choice != "auto":
        return choice
    gathers = device == "cuda" and is_decode and num_ranks <= _MAX_GATHERING_RANKS
    return "all_gather" if gathers else "all_to_all"


def explain(choice: DispatchChoice, num_ranks: int, device: str) -> str:
    """In words, what `choose` will do."""
    if num_ranks == 1:
        return "dispatch local: one rank holds all experts"
    if choice != "auto":
        return f"dispatch {choice}: as asked"
    if device == "cpu":
        return "dispatch all_to_all (auto): gloo's all-to-all is its fastest exchange"
    if num_ranks > _MAX_GATHERING_RANKS:
        return f"dispatch all_to_all (auto): fewest bytes with {num_ranks} ranks, by count"
    return (
        "dispatch all_to_all for prompts, all_gather for decodes (auto): fewest bytes, and no wait "
        "for the device; counted, not measured on GPUs: see jobs.bench_dispatch, choose --dispatch"
    )
