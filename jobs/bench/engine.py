"""Measure the speed of the engine, as a rate and as a fraction of what this machine allows.

    python -m jobs.bench.engine                          # everything, some minutes on two cores
    python -m jobs.bench.engine --only prefill,decode --sequences 1,8,32 --compare transformers
    python -m jobs.bench.engine --expert-parallel 2      # only `ranks`, unless --only names more

The shape is `moonlight-4l`: the published widths of Kimi-VL's decoder (hidden 2048, 64 experts x
1408, top-6, 2 shared, latent attention, vocabulary 163,840) and of MoonViT, 4 layers of each, with
5.3 GB of random bf16 weights. Prompts are random tokens; no stop token ends a text early.

parts:
  prefill     tokens/s of 8 prompts of 128 tokens
  decode      tokens/s after prompts of 128 tokens, by number of sequences
  vision      patches/s of MoonViT and projector: one image of 896x896, 32 frames of 448x252
  questions   8 questions about one clip of 32 frames, as a multiple of one question; the same on
              the demo checkpoint, from H.264 to the answers
  contexts    prefill and decode by length of the context, at a narrow shape
  clips       clips/s of the demo checkpoint, from H.264 to the caption
  scheduler   the scheduler's share of the demo checkpoint's steps while 1,000 prompts wait
  neighbours  the share of 500 texts that change between batches of 1 and of 32
  ranks       prefill and decode of R ranks of one thread each, which share the experts, compared
              with one engine of R threads and R groups of one rank; needs `--expert-parallel R`

Each rate comes with its fraction of a limit, measured in turns with it: the time of the bare bf16
products of the same shapes, on weights prepacked for this processor. For decode these are only the
experts that the tokens of the step chose, and the head (`decode_of_limit`); a second fraction
compares with the time to read all weights that a step uses (`decode_of_memory_read`). Compare the
fractions, not the rates: the speed of a shared machine varies. Run it while nothing else runs; each
part reports the share of the CPUs that other processes used.

`--compare transformers` does the same work in turns with DeepSeek-V3 and MoonViT of Kimi-K2.5 from
transformers, on the same threads; above 1 the engine is faster.

The last line of the output is one JSON object.
"""

import argparse
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
from jobs.bench.command import bench_parser, print_json, print_value
from jobs.bench.measure.shapes import narrow
from jobs.bench.measure.turns import Others
from jobs.cli.checkpoint import find_checkpoint
from jobs.cli.options import Parser, names_among, positive, positive_list
from jobs.planning.shapes import moonlight

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all parts, print a table and a JSON object, and return the exit code."""
    options = _parser().parse_args(arguments)
    parts = options.only or default_parts(options.expert_parallel)
    if ("ranks" in parts) != (options.expert_parallel is not None):
        print("engine: error: ranks and --expert-parallel R go together", file=sys.stderr)
        return 2
    bench = Workbench(
        config=moonlight(options.layers),
        long_config=narrow(),
        checkpoint=find_checkpoint("demo"),
        num_threads=options.threads,
        compares=options.compare is not None,
        num_ranks=options.expert_parallel or 1,
        sizes=Sizes(num_sequences=options.sequences),
    )
    shape = {"shape": f"moonlight-{options.layers}l", "threads": options.threads}
    print_json(shape | run(parts, bench))
    return 0


def default_parts(num_ranks: int | None) -> tuple[str, ...]:
    """Return the parts to measure by default: all parts of one process, or the ranks."""
    if num_ranks is not None:
        return ("ranks",)
    return tuple(part for part in PARTS if part != "ranks")


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


def _parser() -> Parser:
    parser = bench_parser("jobs.bench.engine", __doc__)
    add = parser.add_argument
    add("--only", type=names_among(PARTS), metavar="A,B", help="measure only these parts")
    add(
        "--sequences",
        type=positive_list,
        default="1,8,32,64",
        metavar="A,B",
        help="numbers of sequences that decode at the same time",
    )
    add("--layers", type=int, default=4, help="layers of the network; the first one is dense")
    add("--threads", type=int, default=2, help="threads of torch")
    add("--expert-parallel", type=_several, metavar="R", help="ranks that share the experts")
    add("--compare", choices=("transformers",), help="do the same work with this library too")
    return parser


def _several(text: str) -> int:
    if (number := positive(text)) < 2:
        raise argparse.ArgumentTypeError("experts are shared by at least 2 ranks")
    return number


if __name__ == "__main__":
    sys.exit(main())
