"""Measure the speed of the engine, as a rate and as a fraction of what this machine allows.

    python -m jobs.bench.engine                          # everything, some minutes on two cores
    python -m jobs.bench.engine --only prefill,decode --sequences 1,8,32 --compare transformers
    python -m jobs.bench.engine --expert-parallel 2      # only `ranks`, unless --only names more
    python -m jobs.bench.engine --device cuda            # the published shape on one GPU
    python -m jobs.bench.engine --device cuda --expert-parallel 8    # one copy on eight GPUs
    python -m jobs.bench.engine --device cuda --dry-run  # the same on a CPU, tiny, in seconds

The shape on a CPU is `moonlight-4l`: the published widths of Kimi-VL's decoder (hidden 2048, 64
experts x 1408, top-6, 2 shared, latent attention, vocabulary 163,840) and of MoonViT, 4 layers of
each, with 5.3 GB of random bf16 weights. Prompts are random tokens; no stop token ends a text
early.

parts on a CPU:
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

On a GPU the shape is `moonlight-27l`, and its 33 GB of weights are made on the card: no file, no
network and no Ray is needed. Parts on a GPU:
  prefill     tokens/s of prompts of 2,048 tokens, one and four in a step
  decode      tokens/s behind contexts of 2,048 tokens, by number of sequences; the host's waits and
              the kernels of a step; the share of the time in which the card is busy
  eager       milliseconds of such a step without CUDA graphs, for the fewest and most sequences
  vision      patches/s of MoonViT and projector: one image of 1792x1792, 32 frames of 448x252
  questions   8 questions about a new clip, as a multiple of one; 8 later ones behind the same past
  rows        rows/s of 2,048 visual and 200 generated tokens, with the most sequences that fit
  ranks       prefill and decode of R ranks, one GPU each, which share the experts of one copy;
              needs `--expert-parallel R`, and is measured alone

There the limit of prompts and images is their operations by the rate of a large bfloat16 product.
The limit of a decode is its bytes (chosen experts, all other weights of a step, every context) by
the rate of a copy. Both rates are measured in turns with the work. `python -m jobs.plan --measured
FILE` plans with a file of this output.

`--compare transformers` does the same work in turns with DeepSeek-V3 and MoonViT of Kimi-K2.5 from
transformers, on the same threads or GPU; above 1 the engine is faster.

The last line of the output is one JSON object.
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.bench.command import bench_parser
from jobs.cli.options import Parser, names_among, positive, positive_list

# The names of the parts, in their order. What measures them is imported when it is used: a GPU
# needs neither Ray nor transformers.
CPU_PARTS = (
    *("prefill", "decode", "vision", "questions", "contexts", "clips", "scheduler", "neighbours"),
    "ranks",
)
GPU_PARTS = ("prefill", "decode", "eager", "vision", "questions", "rows")
_DRY_RUN = "with --device cuda: try it on a CPU with a tiny network; the numbers mean nothing"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all parts, print a table and a JSON object, and return the exit code."""
    options = make_parser().parse_args(arguments)
    on_gpu = options.device == "cuda"
    parts = options.only or default_parts(options.expert_parallel, on_gpu=on_gpu)
    if reason := _refusal(options, parts):
        print(f"engine: error: {reason}", file=sys.stderr)
        return 2
    common = {
        "layers": options.layers,
        "num_sequences": options.sequences,
        "compares": options.compare is not None,
    }
    if on_gpu:
        from jobs.bench.device.session import measure_device

        ranks = options.expert_parallel
        return measure_device(parts, **common, num_ranks=ranks, is_dry=options.dry_run)
    from jobs.bench.cases.session import measure_cpus

    threads, ranks = options.threads, options.expert_parallel
    return measure_cpus(parts, **common, num_threads=threads, num_ranks=ranks)


def _refusal(options: argparse.Namespace, parts: Sequence[str]) -> str | None:
    """Return why these options cannot go together, or None."""
    known = (*GPU_PARTS, "ranks") if options.device == "cuda" else CPU_PARTS
    if unknown := [part for part in parts if part not in known]:
        choice = f"choose from {', '.join(known)}"
        return f"{', '.join(unknown)}: no part of --device {options.device}; {choice}"
    if options.dry_run and options.device != "cuda":
        return "--dry-run tries what --device cuda measures: give both"
    if ("ranks" in parts) != (options.expert_parallel is not None):
        return "ranks and --expert-parallel R go together"
    is_alone = parts == ("ranks",) and options.compare is None
    if options.device == "cuda" and options.expert_parallel and not is_alone:
        return "on GPUs ranks are measured alone: leave out --compare and other parts"
    return None


def default_parts(num_ranks: int | None, *, on_gpu: bool = False) -> tuple[str, ...]:
    """Return the parts to measure by default: all parts of one process, or the ranks."""
    if num_ranks is not None:
        return ("ranks",)
    if on_gpu:
        return GPU_PARTS
    return tuple(part for part in CPU_PARTS if part != "ranks")


def make_parser() -> Parser:
    """Make the parser of the options."""
    parser = bench_parser("jobs.bench.engine", __doc__)
    add = parser.add_argument
    add(
        "--only",
        type=names_among(dict.fromkeys((*CPU_PARTS, *GPU_PARTS))),
        metavar="A,B",
        help="measure only these parts",
    )
    add(
        "--sequences",
        type=positive_list,
        metavar="A,B",
        help="numbers of sequences that decode at the same time; default: 1,8,32,64 on a CPU, "
        "1,32,64,128,256 on a GPU",
    )
    add("--layers", type=positive, help="layers; default: 4 on a CPU, 27 on a GPU")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    add("--dry-run", action="store_true", help=_DRY_RUN)
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
