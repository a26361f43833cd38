"""Measure the parts on CPUs, in order."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from jobs.bench.cases.clips import measure_clips, measure_neighbours
from jobs.bench.cases.contexts import measure_contexts
from jobs.bench.cases.questions import measure_questions
from jobs.bench.cases.ranks import measure_ranks
from jobs.bench.cases.text import measure_decode, measure_prefill
from jobs.bench.cases.vision import measure_vision
from jobs.bench.cases.waiting import measure_scheduler
from jobs.bench.cases.workbench import Sizes, Workbench
from jobs.bench.command import print_json, print_value
from jobs.bench.measure.shapes import narrow
from jobs.bench.measure.turns import Others
from jobs.cli.checkpoint import find_checkpoint
from jobs.planning.shapes import moonlight

LAYERS = 4

PARTS: Mapping[str, Callable[[Workbench], dict[str, object]]] = {
    "prefill": measure_prefill,
    "decode": measure_decode,
    "vision": measure_vision,
    "questions": measure_questions,
    "contexts": measure_contexts,
    "clips": measure_clips,
    "scheduler": measure_scheduler,
    "neighbours": measure_neighbours,
    "ranks": measure_ranks,
}


def measure_cpus(
    parts: Sequence[str],
    *,
    layers: int | None,
    num_sequences: tuple[int, ...] | None,
    compares: bool,
    num_threads: int,
    num_ranks: int | None,
) -> int:
    """Measure the parts, print a table and a JSON object, and return the exit code."""
    layers = layers or LAYERS
    bench = Workbench(
        config=moonlight(layers),
        long_config=narrow(),
        checkpoint=find_checkpoint("demo"),
        num_threads=num_threads,
        compares=compares,
        num_ranks=num_ranks or 1,
        sizes=Sizes() if num_sequences is None else Sizes(num_sequences=num_sequences),
    )
    print_json({"shape": f"moonlight-{layers}l", "threads": num_threads} | run(parts, bench))
    return 0


def run(parts: Sequence[str], bench: Workbench) -> dict[str, object]:
    """Measure the parts; print each number as soon as it is known."""
    torch.set_num_threads(bench.num_threads)
    measured: dict[str, object] = {}
    shares: dict[str, float] = {}
    for part in parts:
        print(f"{part} ...", flush=True)
        started, others = time.perf_counter(), Others()
        found = PARTS[part](bench)
        shares[part] = round(others.share(), 3)
        for name, value in found.items():
            print_value(f"  {name}", value)
        took_s = time.perf_counter() - started
        print(f"  ({took_s:.0f} s; others used {100 * shares[part]:.0f} % of the processors)")
        sys.stdout.flush()
        measured |= found
    return {**measured, "others_share": shares}
