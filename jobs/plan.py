"""Which layout of groups and ranks to choose, by a small cost model.

    python -m jobs.plan
    python -m jobs.plan --gpus 64 --gpu l4 --visual-tokens 4096 --generated-tokens 500
    python -m jobs.plan --model checkpoint/ --gpus 8 --tflops 300 --memory-gbs 1500

For each number of GPUs and each number R of ranks that share a copy: memory of a rank, seconds of a
step, share of exchanges, rows a day; `<-` marks the choice, the most rows a day, or of nearly equal
ones (3 %) the fewest ranks. The options below it make a job of that layout, with the sequences and
the cache of a rank that were supposed. The last line is JSON. Sizes come from the checkpoint's
config.json, or are those of Kimi-VL-A3B as published.

Assumed, and wrong where your case differs:
  * Weights, cache and rows on the wire are bfloat16. Products and reading of memory reach fixed
    shares of the data sheet's peaks (--product-share, --memory-share), links of theirs.
  * A step is the sum of its parts, each bound by arithmetic or by memory: nothing overlaps, though
    shared experts do run while rows travel. It takes at least --launch-us for each layer.
  * Tokens choose experts uniformly; the busiest rank's experts have --skew times the mean, and the
    busiest rank --level's inverse times the mean tokens (both without effect for R = 1).
  * all_to_all: a row crosses to a rank at most once each way; three exchanges a layer, each with a
    latency, and one for the step. Groups beyond --gpus-per-node use the network for the rest.
  * A rank decodes as many sequences as memory holds, up to --batch-size, all at their mean length;
    prompts are computed --step-tokens at a time. Nine tenths of the memory are used.
  * Decoding of media, which takes CPUs, the ends of a run, failures and shared prefixes are left
    out. So rows a day are what the GPUs could do, and layouts compare better than they predict.
Nothing of this has been compared with a GPU. BENCHMARKS.md compares it with steps of one rank on a
CPU, for which it is a lower bound of which the engine reaches about 0.65.
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
from jobs.planning.network import Network
from jobs.planning.shapes import moonlight
from model.config import KimiVLConfig

_RANKS = (1, 2, 4, 8, 16, 32, 64)
_LAYERS = 27  # as published


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each number of GPUs, and JSON."""
    options = _parser().parse_args(arguments)
    try:
        hardware = _hardware(options)
        network = Network(_config(options))
    except ValueError as error:
        print(f"plan: error: {error}", file=sys.stderr)
        return 2
    planner = Planner(network, hardware, _rows(options), options.gpus_per_node)
    print(
        f"{network.num_parameters / 1e9:.2f} billion parameters; a row: {options.visual_tokens} "
        f"visual, {options.text_tokens} text and {options.generated_tokens} generated tokens"
    )
    print(f"{options.gpu}: {_words(hardware)}")
    plans = [_plan(planner, num_gpus, options.ranks) for num_gpus in options.gpus]
    print(json.dumps({"gpu": options.gpu, "hardware": asdict(hardware), "plans": plans}))
    return 0


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
        return "nothing fits: take more ranks, larger GPUs, or fewer tokens a row"
    tenths = math.ceil(10 * chosen.cache_gib)  # of a GiB, or a sequence would be left out
    return (
        f"choose --groups {chosen.num_groups} --expert-parallel {chosen.num_ranks} --batch-size "
        f"{chosen.num_sequences} --cache-gib {tenths / 10:g}"
    )


def _words(hardware: Hardware) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in asdict(hardware).items())


def _config(options: argparse.Namespace) -> KimiVLConfig:
    if options.model is not None:
        return KimiVLConfig.from_checkpoint(options.model)
    return moonlight(options.layers)


def _hardware(options: argparse.Namespace) -> Hardware:
    """The preset with what the user knows better."""
    given = {field.name: getattr(options, field.name) for field in fields(Hardware)}
    return replace(GPUS[options.gpu], **{k: v for k, v in given.items() if v is not None})


def _rows(options: argparse.Namespace) -> Rows:
    return Rows(
        visual_tokens=options.visual_tokens,
        text_tokens=options.text_tokens,
        generated_tokens=options.generated_tokens,
        frame_tokens=options.frame_tokens,
        step_tokens=options.step_tokens,
        most_sequences=options.batch_size,
        level=options.level,
        skew=options.skew,
        num_copies=options.expert_copies,
    )


def _parser() -> Parser:
    parser = Parser(prog="python -m jobs.plan", description=__doc__, formatter_class=Formatter)
    _add_machine(parser.add_argument_group("machine"))
    _add_row(parser.add_argument_group("rows"))
    return parser


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gpus", type=positive_list, default="1,8,64,512", metavar="N,...", help="in all"
    )
    group.add_argument("--gpu", choices=sorted(GPUS), default="h100", help="of which kind")
    group.add_argument("--gpus-per-node", type=positive, default=8, metavar="N", help="with links")
    group.add_argument(
        "--ranks",
        type=positive_list,
        default=",".join(map(str, _RANKS)),
        metavar="R,...",
        help="group sizes that are compared",
    )
    for field in fields(Hardware):
        flag = f"--{field.name.replace('_', '-')}"
        group.add_argument(flag, type=float, metavar="X", help=_HELP[field.name])


_HELP = {
    "tflops": "in place of the data sheet's: dense bf16",
    "memory_gbs": "GB/s of memory",
    "memory_gib": "of memory",
    "link_gbs": "GB/s each way within a node",
    "net_gbs": "GB/s each way of a GPU between nodes",
    "link_latency_us": "of a collective within a node; default: 30",
    "net_latency_us": "of a collective between nodes; default: 60",
    "product_share": "of --tflops that is reached; default: 0.5",
    "memory_share": "of --memory-gbs that is reached; default: 0.7",
    "link_share": "of the links' GB/s that is reached; default: 0.7",
    "launch_us": "that a layer takes at least; default: 250",
}


def _add_row(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", type=Path, metavar="DIR", help="checkpoint; default: published")
    group.add_argument(
        "--layers", type=positive, default=_LAYERS, metavar="N", help="without --model"
    )
    group.add_argument("--visual-tokens", type=count, default=2048, metavar="N", help="of a row")
    group.add_argument(
        "--text-tokens", type=positive, default=64, metavar="N", help="of its prompt"
    )
    group.add_argument(
        "--generated-tokens", type=positive, default=200, metavar="N", help="of its caption"
    )
    group.add_argument("--frame-tokens", type=positive, default=256, metavar="N", help="of a frame")
    group.add_argument(
        "--step-tokens", type=positive, default=8192, metavar="N", help="of a step with prompts"
    )
    group.add_argument(
        "--batch-size", type=positive, default=256, metavar="N", help="sequences of a rank at most"
    )
    group.add_argument(
        "--level", type=_share, default=0.8, metavar="X", help="of tokens, 1 is best"
    )
    group.add_argument(
        "--skew", type=float, default=1.2, metavar="X", help="of experts' rows, 1 is best"
    )
    group.add_argument(
        "--expert-copies", type=count, default=0, metavar="N", help="more on each rank of several"
    )


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0 and up to 1, not {text!r}")
    return share


if __name__ == "__main__":
    sys.exit(main())
