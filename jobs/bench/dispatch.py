"""Measure how much the dispatchers send, and how long they take compared with bare collectives.

    python -m jobs.bench.dispatch [--ranks 2,4,8] [--tokens 1,32,512] [--wire-dtype float8]

Ranks are processes of one thread each, joined as in a job. For each dispatcher and number of tokens
per rank, the table shows the rows and bytes per token that go to other ranks, each way, with the
least possible number; and the microseconds of dispatch and combine of one layer, without experts,
with those of bare collectives that move the same bytes. `--dispatch auto` chooses by such numbers.

Letters: R ranks, T tokens of a rank, D hidden size, E experts, K experts per token.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist

from jobs.bench.command import bench_parser, print_json, print_rows
from jobs.bench.measure.ranks import run_on_ranks
from jobs.cli.options import positive, positive_list
from jobs.planning.network import least_rows
from model.malloc import keep_freed_memory
from parallel.experts.collectives import all_gather_single, reduce_scatter_single
from parallel.experts.dispatch import AllGatherDispatcher, AllToAllDispatch, AllToAllDispatcher
from parallel.experts.policy import WireDtype
from parallel.experts.topology import Topology
from parallel.experts.wire import serialize_rows
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.rendezvous import JoinedGroup

_WARM_UP, _REPEATS = 5, 30
_DTYPE = torch.bfloat16


Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows, slots, weights
Timed = tuple[float, float, Callable[[], None]]  # rows and bytes per token, the bare collectives


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all dispatchers, print a table and a JSON object; return the exit code."""
    options = _parse(arguments)
    print(
        f"D {options.hidden}, E {options.experts}, K {options.top_k}, {_DTYPE}, "
        f"wire {options.wire_dtype}, {options.device}"
    )
    rows = (row for ranks in options.ranks for row in run_on_ranks(_rank, ranks, options))
    print_json({"dispatch": print_rows(rows)})
    return 0


def _rank(options: argparse.Namespace, spec: RankSpec) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    keep_freed_memory()  # as an engine does
    device = torch.device(f"cuda:{spec.rank}" if options.device == "cuda" else "cpu")
    group = JoinedGroup(spec, device).group
    num_local = Topology.even(options.experts, spec.num_ranks).num_local_experts
    wire = options.wire_dtype
    rows: list[dict[str, object]] = []
    for num_tokens in options.tokens:
        generator = torch.Generator().manual_seed(spec.rank)
        x = torch.randn(num_tokens, options.hidden, generator=generator).to(device, _DTYPE)
        scores = torch.rand(num_tokens, options.experts, generator=generator)
        expert_ids = scores.topk(options.top_k).indices.to(device)
        weights = torch.rand(num_tokens, options.top_k, generator=generator).to(device)
        tokens = (x, expert_ids, weights)  # experts in order: their ids are their slots
        all_to_all = AllToAllDispatcher(num_local, group, wire)
        all_gather = AllGatherDispatcher(num_local, group, bucket=num_tokens, wire_dtype=wire)
        for dispatcher, (num_rows, num_bytes, bare) in (
            (all_to_all, _bare_all_to_all(all_to_all, group, tokens, wire)),
            (all_gather, _bare_all_gather(group, tokens, wire)),
        ):
            layer_us = _time_us(partial(_layer, dispatcher, tokens), group, device)
            bare_us = _time_us(bare, group, device)
            least = least_rows(options.experts, options.top_k, spec.num_ranks)
            rows.append(
                {
                    "ranks": spec.num_ranks,
                    "tokens": num_tokens,
                    "dispatcher": "all_to_all" if dispatcher is all_to_all else "all_gather",
                    "rows_per_token": round(num_rows, 2),
                    "least_rows": round(least, 2),
                    "bytes_per_token": round(num_bytes),
                    "us_per_layer": round(layer_us),
                    "us_bare": round(bare_us),
                    "ratio": round(layer_us / bare_us, 2),
                }
            )
    dist.destroy_process_group()
    return rows


def _layer(dispatcher: AllToAllDispatcher | AllGatherDispatcher, tokens: Tokens) -> None:
    dispatch = dispatcher.dispatch(*tokens)
    dispatch.combine(dispatch.arrived[0].contiguous())


def _bare_all_to_all(
    dispatcher: AllToAllDispatcher, group: dist.ProcessGroup, tokens: Tokens, wire: WireDtype
) -> Timed:
    dispatch = dispatcher.dispatch(*tokens)
    assert isinstance(dispatch, AllToAllDispatch)
    dispatch.combine(dispatch.arrived[0].contiguous())
    x, sent, arriving = tokens[0], dispatch.counts.sent_rows, dispatch.counts.received_rows
    leaving = serialize_rows(*_some(tokens, sum(sent)), wire)
    arrived = leaving.new_empty(sum(arriving), leaving.shape[1])
    back, home = x.new_empty(sum(arriving), x.shape[1]), x.new_empty(sum(sent), x.shape[1])
    counts = torch.ones(group.size(), dtype=torch.int64, device=x.device)

    def bare() -> None:
        dist.all_to_all_single(torch.empty_like(counts), counts, group=group)
        dist.all_to_all_single(arrived, leaving, arriving, sent, group=group)
        dist.all_to_all_single(home, back, sent, arriving, group=group)

    rows = (sum(sent) - sent[group.rank()]) / len(x)
    return rows, rows * (leaving.shape[1] + x.shape[1] * x.element_size()), bare


def _bare_all_gather(group: dist.ProcessGroup, tokens: Tokens, wire: WireDtype) -> Timed:
    x = tokens[0]
    leaving = serialize_rows(*tokens, wire)
    arrived = leaving.new_empty(group.size() * len(x), leaving.shape[1])
    partials = torch.zeros(group.size() * len(x), x.shape[1], device=x.device)
    home = torch.zeros(len(x), x.shape[1], device=x.device)

    def bare() -> None:
        all_gather_single(arrived, leaving, group=group)
        reduce_scatter_single(home, partials, group=group)

    rows = group.size() - 1
    return rows, rows * (leaving.shape[1] + x.shape[1] * partials.element_size()), bare


def _some(tokens: Tokens, num_rows: int) -> Tokens:
    """Repeat tokens, slots and weights until there are `num_rows` rows."""
    x, places, weights = tokens
    which = torch.arange(num_rows, device=x.device) % len(x)
    return x[which], places[which], weights[which]


@torch.inference_mode()
def _time_us(call: Callable[[], None], group: dist.ProcessGroup, device: torch.device) -> float:
    """Return the median microseconds of a call that all ranks make together."""
    times: list[float] = []
    for _ in range(_WARM_UP + _REPEATS):
        dist.barrier(group=group)
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[_WARM_UP:]) * 1e6


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = bench_parser("jobs.bench.dispatch", __doc__)
    add = parser.add_argument
    add("--ranks", type=positive_list, default="2,4,8", metavar="R,...", help="group sizes")
    add("--tokens", type=positive_list, default="1,32,512", metavar="T,...", help="tokens per rank")
    add("--hidden", type=positive, default=2048, metavar="D", help="hidden size")
    add("--experts", type=positive, default=64, metavar="E", help="routed experts")
    add("--top-k", type=positive, default=6, metavar="K", help="experts per token")
    add(
        "--wire-dtype",
        choices=("auto", "bfloat16", "float8"),
        default="auto",
        help="type of the rows that are sent to experts",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="device of the ranks")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
