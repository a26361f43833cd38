"""Measure how much the dispatchers send, and how long they take compared with bare collectives.

    python -m jobs.bench.dispatch [--ranks 2,4,8] [--tokens 1,32,512] [--wire-dtype float8]

Ranks are processes of one thread each, joined as in a job. For each dispatcher and number of tokens
per rank, the table shows the rows and bytes per token that go to other ranks, each way, with the
least possible number; and the microseconds of dispatch and combine of one layer, without experts,
with those of bare collectives that move the same bytes. `--dispatch auto` chooses by such numbers.

Letters: R ranks, T tokens of a rank, D hidden size, E experts, K experts per token.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from jobs.bench.command import Column, Table, bench_parser, print_json
from jobs.bench.measure.ranks import run_on_ranks
from jobs.cli.options import positive, positive_list
from jobs.planning.network import least_rows
from model.malloc import keep_freed_memory
from parallel.experts.dispatch import AllGatherDispatcher, AllToAllDispatch, AllToAllDispatcher
from parallel.experts.permute import serialize_rows
from parallel.experts.policy import WireDtype
from parallel.experts.topology import Topology
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.rendezvous import JoinedGroup

_WARM_UP, _REPEATS = 5, 30
_DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Measured:
    """One row of the table, as rank 0 measured it."""

    name: str
    num_ranks: int
    num_tokens: int
    rows: float  # per token, to other ranks
    wire_bytes: float  # per token, to the experts and back
    layer_us: float
    bare_us: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all dispatchers, print a table and a JSON object; return the exit code."""
    options = _parse(arguments)
    table = Table(
        Column("ranks", "num_ranks", "d"),
        Column("tokens", "num_tokens", "d"),
        Column("dispatcher", "name", ""),
        Column("rows/token", "rows", ".2f"),
        Column("least", "least_rows", ".2f"),
        Column("bytes/token", "wire_bytes", ".0f"),
        Column("us/layer", "layer_us", ".0f"),
        Column("us bare", "bare_us", ".0f"),
        Column("ratio", "ratio", ".2f"),
    )
    print(
        f"D {options.hidden}, E {options.experts}, K {options.top_k}, {_DTYPE}, "
        f"wire {options.wire_dtype}, {options.device}"
    )
    for num_ranks in options.ranks:
        least = least_rows(options.experts, options.top_k, num_ranks)
        measured: list[Measured] = run_on_ranks(_rank, num_ranks, options)
        for each in measured:
            ratio = each.layer_us / each.bare_us
            table.add(asdict(each) | {"least_rows": least, "ratio": ratio})
    print_json({"dispatch": table.rows})
    return 0


def _rank(
    options: argparse.Namespace, spec: RankSpec, answers: multiprocessing.SimpleQueue
) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as an engine does
    device = torch.device(f"cuda:{spec.rank}" if options.device == "cuda" else "cpu")
    group = JoinedGroup(spec, device).group
    num_local = Topology.even(options.experts, spec.num_ranks).num_local_experts
    measured: list[Measured] = []
    for num_tokens in options.tokens:
        generator = torch.Generator().manual_seed(spec.rank)
        x = torch.randn(num_tokens, options.hidden, generator=generator).to(device, _DTYPE)
        scores = torch.rand(num_tokens, options.experts, generator=generator)
        expert_ids = scores.topk(options.top_k).indices.to(device)
        weights = torch.rand(num_tokens, options.top_k, generator=generator).to(device)
        tokens = (x, expert_ids, weights)  # experts in order: their ids are their slots
        measured += [
            measure(num_local, group, device, tokens, options.wire_dtype)
            for measure in (_all_to_all, _all_gather)
        ]
    if spec.rank == 0:
        answers.put(measured)
    dist.destroy_process_group()


Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _all_to_all(
    num_local: int, group: dist.ProcessGroup, device: torch.device, tokens: Tokens, wire: WireDtype
) -> Measured:
    dispatcher = AllToAllDispatcher(num_local, group, wire)
    dispatch = dispatcher.dispatch(*tokens)
    assert isinstance(dispatch, AllToAllDispatch)
    dispatch.combine(dispatch.rows)
    x, sent, arriving = tokens[0], dispatch.counts.sent_rows, dispatch.counts.received_rows
    leaving = serialize_rows(*_some(tokens, sum(sent)), wire)
    arrived = leaving.new_empty(sum(arriving), leaving.shape[1])
    back, home = x.new_empty(sum(arriving), x.shape[1]), x.new_empty(sum(sent), x.shape[1])
    counts = torch.ones(group.size(), num_local + 1, dtype=torch.int64, device=device)

    def layer() -> None:
        there = dispatcher.dispatch(*tokens)
        there.combine(there.rows)

    def bare() -> None:
        dist.all_to_all_single(torch.empty_like(counts), counts, group=group)
        dist.all_to_all_single(arrived, leaving, arriving, sent, group=group)
        dist.all_to_all_single(home, back, sent, arriving, group=group)

    rows = (sum(sent) - sent[group.rank()]) / len(x)
    wire_bytes = rows * (leaving.shape[1] + x.shape[1] * x.element_size())
    times = _time_us(layer, group, device), _time_us(bare, group, device)
    return Measured("all_to_all", group.size(), len(x), rows, wire_bytes, *times)


def _all_gather(
    num_local: int, group: dist.ProcessGroup, device: torch.device, tokens: Tokens, wire: WireDtype
) -> Measured:
    x = tokens[0]
    dispatcher = AllGatherDispatcher(num_local, group, bucket=len(x), wire_dtype=wire)
    leaving = serialize_rows(*tokens, wire)
    arrived = leaving.new_empty(group.size() * len(x), leaving.shape[1])
    partial = torch.zeros(group.size() * len(x), x.shape[1], device=device)
    home = torch.zeros(len(x), x.shape[1], device=device)

    def layer() -> None:
        there = dispatcher.dispatch(*tokens)
        there.combine(there.rows)

    def bare() -> None:
        dist.all_gather_single(arrived, leaving, group=group)
        dist.reduce_scatter_single(home, partial, group=group)

    rows = float(group.size() - 1)
    wire_bytes = rows * (leaving.shape[1] + x.shape[1] * partial.element_size())
    times = _time_us(layer, group, device), _time_us(bare, group, device)
    return Measured("all_gather", group.size(), len(x), rows, wire_bytes, *times)


def _some(tokens: Tokens, num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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
