"""Measure the gain of placing experts by the load of an earlier run, on routing of known skew.

    python -m jobs.bench.placement [--ranks 2,4,8] [--skew 0,0.5,1] [--tokens 32,512] [--copies 1,2]
    python -m jobs.bench.placement --load captions/_expert_load.parquet

The load is counted on tokens drawn by Zipf's law: the n-th expert of a layer is n ** -skew times as
likely as the first, in a random order for each layer. `--load` uses the counts of a real run
instead. Experts are placed by that load, and other tokens of the same distribution are routed.

max_by_mean  expert rows of the busiest rank by those of the average rank, over layers and steps:
             the experts of a layer take this many times longer than necessary
sent         number of other ranks to which a token's row is sent, each way

"in order" places equally many experts per rank in their order; "one for all" places all layers by
their sum; "by layer" places each layer by its own load, as a job does; "+ n" adds n copies of hot
experts on each rank. Only the routing is computed, so the numbers are the same on every machine.

Letters: R ranks, T tokens of a rank, E experts, K experts per token.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jobs.bench.command import bench_parser, print_json, print_rows
from jobs.cli.options import Parser, positive, positive_list
from parallel.experts.load import ExpertLoad, add
from parallel.experts.placement import place, place_layer
from parallel.experts.topology import Topology

_COUNTED_TOKENS = 20_000
_STEPS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table and a JSON object; return the exit code."""
    print_json({"placement": print_rows(_measure(_parser().parse_args(arguments)))})
    return 0


def _measure(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    for name, shares in _distributions(options):
        chance = np.random.default_rng(0)
        counted = _draw(chance, shares, _COUNTED_TOKENS, options.top_k)
        load = {
            layer: np.bincount(ids.ravel(), minlength=shares.shape[1])
            for layer, ids in enumerate(counted)
        }
        for num_ranks, num_tokens in itertools.product(options.ranks, options.tokens):
            num_drawn = num_ranks * num_tokens
            steps = [_draw(chance, shares, num_drawn, options.top_k) for _ in range(_STEPS)]
            for placement, topologies in placements(load, num_ranks, options.copies):
                busiest, sent = route(topologies, steps, num_ranks)
                yield {
                    "shares": name,
                    "ranks": num_ranks,
                    "tokens": num_tokens,
                    "placement": placement,
                    "max_by_mean": round(busiest, 3),
                    "sent": round(sent, 2),
                }


def placements(
    load: ExpertLoad, num_ranks: int, copies: Sequence[int]
) -> Iterator[tuple[str, Mapping[int, Topology]]]:
    """Yield the placements to compare, by name."""
    num_experts = len(load[0])
    yield "in order", dict.fromkeys(load, Topology.even(num_experts, num_ranks))
    total = add({0: tokens} for tokens in load.values())[0]
    yield "one for all", dict.fromkeys(load, place_layer(total.tolist(), num_ranks, 0))
    yield "by layer", place(load, num_ranks, 0)
    for number in copies:
        yield f"by layer + {number}", place(load, num_ranks, number)


def route(
    topologies: Mapping[int, Topology], steps: Sequence[NDArray[np.int64]], num_ranks: int
) -> tuple[float, float]:
    """Return busiest by average rank, and the number of other ranks that a row is sent to.

    Each step has the expert ids [layers, R * T, K] of the tokens of all ranks.
    """
    busiest: list[float] = []
    sent: list[float] = []
    for layer, topology in topologies.items():
        slots = np.array([topology.slots(rank) for rank in range(num_ranks)])
        tables = slots // topology.num_local_experts
        for step in steps:
            by_rank = step[layer].reshape(num_ranks, -1, step.shape[2])  # [R, T, K]
            owners = np.stack([table[ids] for table, ids in zip(tables, by_rank, strict=True)])
            rows = np.bincount(owners.ravel(), minlength=num_ranks)
            busiest.append(rows.max() / rows.mean())
            reached = (owners[..., None] == np.arange(num_ranks)).any(2)  # [R, T, R]
            at_home = np.einsum("rtr->", reached.astype(int))
            sent.append((reached.sum() - at_home) / owners[..., 0].size)
    return float(np.mean(busiest)), float(np.mean(sent))


def _draw(
    chance: np.random.Generator, shares: NDArray[np.float64], num_tokens: int, top_k: int
) -> NDArray[np.int64]:
    """Draw K distinct experts of each token by their shares: ids [layers, tokens, K].

    The K largest of log share + Gumbel noise are such a draw (Gumbel-top-k, arXiv 1903.06059).
    """
    noise = chance.gumbel(size=(len(shares), num_tokens, shares.shape[1]))
    with np.errstate(divide="ignore"):
        keys = np.log(shares)[:, None] + noise
    return np.argpartition(-keys, top_k - 1, axis=-1)[..., :top_k]


def _distributions(options: argparse.Namespace) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield the name and the shares [layers, E] of each distribution."""
    if options.load is not None:
        load = pd.read_parquet(options.load).pivot(index="layer", columns="expert", values="tokens")
        yield "record", load.to_numpy(np.float64)
        return
    for skew in options.skew:
        chance = np.random.default_rng(1)
        zipf = np.arange(1, options.experts + 1) ** -skew
        layers = [chance.permutation(zipf) for _ in range(options.layers)]
        yield f"zipf {skew:g}", np.stack(layers).astype(np.float64)


def _parser() -> Parser:
    parser = bench_parser("jobs.bench.placement", __doc__)
    add = parser.add_argument
    add("--ranks", type=positive_list, default="2,4,8", metavar="R,...", help="group sizes")
    add("--tokens", type=positive_list, default="32,512", metavar="T,...", help="tokens per rank")
    add("--skew", type=_skews, default="0,0.5,1", metavar="S,...", help="exponents of Zipf's law")
    add("--load", type=Path, metavar="PARQUET", help="use the counts of a real run instead")
    add("--copies", type=positive_list, default="1,2", metavar="N,...", help="extra experts a rank")
    add("--layers", type=positive, default=26, metavar="N", help="layers with experts")
    add("--experts", type=positive, default=64, metavar="E", help="routed experts per layer")
    add("--top-k", type=positive, default=6, metavar="K", help="experts per token")
    return parser


def _skews(text: str) -> list[float]:
    try:
        skews = [float(number) for number in text.split(",")]
    except ValueError:
        skews = [-1.0]
    if min(skews) < 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers from 0 on, such as 0,0.5,1"
        )
    return skews


if __name__ == "__main__":
    sys.exit(main())
