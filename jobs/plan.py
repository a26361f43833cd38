"""Choose how many groups and ranks to run on some GPUs, by a small cost model.

    python -m jobs.plan
    python -m jobs.plan --gpus 64 --gpu l4 --visual-tokens 4096 --generated-tokens 500
    python -m jobs.plan --model checkpoint/ --gpus 8 --tflops 300 --memory-gbs 1500
    python -m jobs.plan --gpus 8 --measured gpu.txt

For each number of GPUs and each number R of ranks that share a copy, a table shows the memory of a
rank, the milliseconds of a step, the share of exchanges, and rows per day. `<-` marks the choice:
the most rows per day, or among nearly equal ones (3 %) the fewest ranks. The options in the line
below the table run a job that way, with the number of sequences and the cache that the model
assumed. The last line is JSON. Sizes come from config.json of the checkpoint, or are those of
Kimi-VL-A3B as published. `--measured FILE` takes the rates of a GPU from the output of
`python -m jobs.bench.engine --device cuda`; options in the group `machine` win over both.

The model assumes the following, and is wrong where your case differs:
  * Weights, cache and exchanged rows are bfloat16. Matrix products, memory reads and links each
    reach a fixed share of their peak in the data sheet (--product-share, --vision-share,
    --memory-share, --link-share). The defaults follow from aims and not from measurements: half of
    a card's own rate of products and 0.4 of its own rate of copies, guessed at 0.7 and 0.87 of the
    data sheet.
  * A step is the sum of its operations, each bound by arithmetic or by memory. Nothing overlaps,
    although shared experts do run during exchanges. Each layer takes at least --launch-us, or
    --replay-us in decodes of a rank that is alone, which CUDA graphs replay. The defaults follow
    from 1,500 operations of a decode step, which was counted, with guesses of 6 and 2.5 us each.
  * Tokens choose experts uniformly; the busiest rank's experts have --skew times the mean, and the
    busiest rank has 1 / --level times the mean tokens (both have no effect for R = 1).
  * Ranks use all_to_all: a row is sent to another rank at most once each way. Each layer has three
    exchanges and each step one more, each with a latency. Groups larger than --gpus-per-node use
    the network between nodes.
  * A rank decodes as many sequences as memory holds, up to --batch-size, all at their mean length;
    prompts are computed --step-tokens at a time. Nine tenths of the memory are used.
  * Media decoding (on CPUs), the start and end of a run, failures and shared prefixes are left out.
    So rows per day are an upper limit, and the model ranks choices better than it predicts times.
With --measured, shares are those of the measured prefill, frames and decode (the number of
sequences that is nearest to --batch-size), and the least time of a layer is its part of the step
with the fewest sequences. Links stay those of the data sheet.
The model has not been compared with a GPU. BENCHMARKS.md compares it with steps of one rank on a
CPU: the predicted times are a lower bound, and the engine reaches about 0.65 of that speed.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from jobs.cli.options import Formatter, Parser, count, positive, positive_list
from jobs.planning.group_layout import GroupLayout, Planner, Rows, best
from jobs.planning.hardware import GPUS, Hardware
from jobs.planning.measured import MeasuredGpu
from jobs.planning.network import Network
from jobs.planning.shapes import moonlight
from model.config import KimiVLConfig

_RANKS = (1, 2, 4, 8, 16, 32, 64)
_LAYERS = 27  # as published
_GPU = "h100"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each number of GPUs, and JSON; return the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        measured = MeasuredGpu.read(options.measured) if options.measured else None
        gpu = options.gpu or (measured and measured.preset) or _GPU
        hardware = _hardware(options, gpu, measured)
        model, layers = options.model, options.layers
        network = Network(KimiVLConfig.from_checkpoint(model) if model else moonlight(layers))
    except ValueError as error:
        print(f"plan: error: {error}", file=sys.stderr)
        return 2
    rows = Rows(**{field.name: getattr(options, field.name) for field in fields(Rows)})
    planner = Planner(network, hardware, rows, options.gpus_per_node)
    print(
        f"{network.num_parameters / 1e9:.2f} billion parameters; one row has "
        f"{options.visual_tokens} visual, {options.text_tokens} text and "
        f"{options.generated_tokens} generated tokens"
    )
    rates = ", ".join(f"{name} {value:g}" for name, value in asdict(hardware).items())
    print(f"{gpu}: {rates}")
    if measured is not None:
        print(_origin(measured, gpu, network))
    plans = [_plan(planner, num_gpus, options.ranks) for num_gpus in options.gpus]
    about = {"gpu": gpu, "measured": measured and measured.card, "hardware": asdict(hardware)}
    print(json.dumps({**about, "plans": plans}))
    return 0


def _origin(measured: MeasuredGpu, gpu: str, network: Network) -> str:
    """Say what was measured, and on how much of the network."""
    text = (
        f"measured on {measured.card} with torch {measured.torch} and {measured.layers} layers; "
        f"links as in the data sheet of {gpu}"
    )
    layers = network.config.text.num_hidden_layers
    if measured.layers < layers:
        text += (
            f"\n{layers} layers are scaled from {measured.layers}; what a step does once counts as "
            "a part of its layers, so times are rather too long"
        )
    return text


def _plan(planner: Planner, num_gpus: int, ranks: Sequence[int]) -> dict[str, object]:
    layouts = list(planner.layouts(num_gpus, ranks))
    chosen = best(layouts)
    print(f"\n{num_gpus} GPU{'s' * (num_gpus > 1)}")
    print("groups x R  GiB a rank  sequences  decode ms  prefill ms  exchange    rows/day")
    for each in layouts:
        name = f"{each.num_groups} x {each.num_ranks}"
        if not each.num_sequences:
            print(f"{name:>10}  {each.memory_gib:10.1f}  does not fit")
            continue
        print(
            f"{name:>10}  {each.memory_gib:10.1f}  {each.num_sequences:9}  {each.decode_ms:9.2f}  "
            f"{each.prefill_ms:10.1f}  {each.exchange_share:8.0%}  {each.rows_per_day:10,.0f}"
            f"{'  <-' * (each is chosen)}"
        )
    print(_advice(chosen))
    return {
        "gpus": num_gpus,
        "groups": chosen and chosen.num_groups,
        "expert_parallel": chosen and chosen.num_ranks,
        "layouts": [asdict(each) for each in layouts],
    }


def _advice(chosen: GroupLayout | None) -> str:
    if chosen is None:
        return "nothing fits: use more ranks, larger GPUs, or fewer tokens per row"
    tenths = math.ceil(10 * chosen.cache_gib)  # of a GiB; rounded up, so the last sequence fits
    return (
        f"choose --groups {chosen.num_groups} --expert-parallel {chosen.num_ranks} --batch-size "
        f"{chosen.num_sequences} --cache-gib {tenths / 10:g}"
    )


def _hardware(options: argparse.Namespace, gpu: str, measured: MeasuredGpu | None) -> Hardware:
    """Return the preset of the GPU, with what was measured, and with what the user gave."""
    hardware = GPUS[gpu]
    if measured is not None:
        hardware = measured.hardware(hardware, options.most_sequences)
    given = {field.name: getattr(options, field.name) for field in fields(Hardware)}
    return replace(hardware, **{k: v for k, v in given.items() if v is not None})


def make_parser() -> Parser:
    """Make the parser of the options."""
    parser = Parser(prog="python -m jobs.plan", description=__doc__, formatter_class=Formatter)
    _add_machine(parser.add_argument_group("machine"))
    add = parser.add_argument_group("rows").add_argument
    add("--model", type=Path, metavar="DIR", help="checkpoint; default: the published sizes")
    for flag, field, parse, default, meaning in _ROW_OPTIONS:
        add(flag, dest=field, type=parse, default=default, metavar=_METAVAR[parse], help=meaning)
    return parser


def _add_machine(group: argparse._ArgumentGroup) -> None:
    add, ranks = group.add_argument, ",".join(map(str, _RANKS))
    add("--gpus", type=positive_list, default="1,8,64,512", metavar="N,...", help=_HELP["gpus"])
    add("--gpu", choices=sorted(GPUS), help=_HELP["gpu"])
    add("--measured", type=Path, metavar="FILE", help=_HELP["measured"])
    add("--gpus-per-node", type=positive, default=8, metavar="N", help="GPUs that share a node")
    add("--ranks", type=positive_list, default=ranks, metavar="R,...", help=_HELP["ranks"])
    for field in fields(Hardware):
        flag = f"--{field.name.replace('_', '-')}"
        add(flag, type=float, metavar="X", help=_HELP[field.name])


_HELP = {
    "gpus": "total numbers of GPUs",
    "gpu": f"kind of GPU; default: the one that was measured, or {_GPU}",
    "measured": "output of `python -m jobs.bench.engine --device cuda`, for the rates of the GPU",
    "ranks": "numbers of ranks per group to compare",
    "tflops": "TFLOP/s of dense bf16 products, in place of the data sheet",
    "memory_gbs": "memory bandwidth, in GB/s",
    "memory_gib": "memory of a GPU, in GiB",
    "link_gbs": "link bandwidth within a node, in GB/s each way",
    "net_gbs": "network bandwidth of a GPU between nodes, in GB/s each way",
    "link_latency_us": "latency of a collective within a node, in microseconds; default: 30",
    "net_latency_us": "latency of a collective between nodes, in microseconds; default: 60",
    "product_share": "share of --tflops that products reach; default: 0.35",
    "vision_share": "share of --tflops that products of images reach; default: 0.35",
    "memory_share": "share of --memory-gbs that reads reach; default: 0.35",
    "link_share": "share of the bandwidth that exchanges reach; default: 0.7",
    "launch_us": "least time of a layer that the host launches, in microseconds; default: 237",
    "replay_us": "least time of a layer that a CUDA graph replays, in microseconds; default: 94",
}


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return share


_METAVAR = {count: "N", positive: "N", float: "X", _share: "X"}
_ROW_OPTIONS = (  # option, name of the value, type, default, help
    ("--layers", "layers", positive, _LAYERS, "layers, without --model"),
    ("--visual-tokens", "visual_tokens", count, 2048, "visual tokens of a row"),
    ("--text-tokens", "text_tokens", positive, 64, "text tokens of its prompt"),
    ("--generated-tokens", "generated_tokens", positive, 200, "tokens of its caption"),
    ("--frame-tokens", "frame_tokens", positive, 256, "tokens of a frame"),
    ("--step-tokens", "step_tokens", positive, 8192, "tokens of a step with prompts"),
    ("--batch-size", "most_sequences", positive, 256, "most sequences of a rank"),
    ("--level", "level", _share, 0.8, "mean by greatest tokens of a rank, 1 is best"),
    ("--skew", "skew", float, 1.2, "busiest by mean rank's expert rows, 1 is best"),
    ("--expert-copies", "num_copies", count, 0, "extra experts on each rank, for R > 1"),
)


if __name__ == "__main__":
    sys.exit(main())
