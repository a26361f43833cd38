"""How much the dispatchers move, and how long they take beside the bare collectives.

    python -m jobs.bench.dispatch [--ranks 2,4,8] [--tokens 1,32,512] [--wire-dtype float8]

Ranks are processes of one thread each, joined as in a job. For each dispatcher and number of tokens
a rank: rows and bytes that a token sends to other ranks, each way, beside the least possible; and
the microseconds of dispatch and combine of one layer, without experts, beside those of bare
collectives that move the same bytes. `auto` takes its crossover from this.

Letters: R ranks, T tokens of a rank, D hidden size, E experts, K experts per token.
"""

import argparse
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from jobs.cli.options import Formatter, Parser, positive
from jobs.cli.processes import run_ranks
from jobs.planning.network import least_rows
from model.malloc import keep_freed_memory
from parallel.experts.dispatch import AllGatherDispatcher, AllToAllDispatch, AllToAllDispatcher
from parallel.experts.permute import pack
from parallel.experts.policy import WireDtype
from parallel.experts.topology import Topology
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.rendezvous import JoinedGroup, RendezvousStore

_WARM_UP, _REPEATS = 5, 30
_DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Measured:
    """One line of the table, as rank 0 sees it."""

    name: str
    num_ranks: int
    num_tokens: int
    rows: float  # of a token, to other ranks
    wire_bytes: float  # of a token, there and back
    layer_us: float
    bare_us: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parse(arguments)
    print(
        f"D {options.hidden}, E {options.experts}, K {options.top_k}, {_DTYPE}, "
        f"wire {options.wire_dtype}, {options.device}"
    )
    print("ranks tokens dispatcher  rows/token  least  bytes/token  us/layer  us bare  ratio")
    for num_ranks in options.ranks:
        for line in _measure_on_ranks(options, num_ranks):
            least = least_rows(options.experts, options.top_k, num_ranks)
            print(
                f"{line.num_ranks:5} {line.num_tokens:6} {line.name:10} {line.rows:11.2f} "
                f"{least:6.2f} {line.wire_bytes:12.0f} {line.layer_us:9.0f} {line.bare_us:8.0f} "
                f"{line.layer_us / line.bare_us:6.2f}",
                flush=True,
            )


def _measure_on_ranks(options: argparse.Namespace, num_ranks: int) -> list[Measured]:
    meeting = RendezvousStore(socket.gethostbyname("localhost"))
    context = multiprocessing.get_context("spawn")
    lines = context.SimpleQueue()
    seats = [
        RankSpec(
            address=meeting.address,
            generation="bench",
            rank=rank,
            num_ranks=num_ranks,
            join_timeout_s=300,
            exchange_timeout_s=120,
        )
        for rank in range(num_ranks)
    ]
    processes = [context.Process(target=_rank, args=(options, seat, lines)) for seat in seats]
    run_ranks(processes)
    return lines.get()


def _rank(options: argparse.Namespace, seat: RankSpec, lines: multiprocessing.SimpleQueue) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as an engine does
    device = torch.device(f"cuda:{seat.rank}" if options.device == "cuda" else "cpu")
    group = JoinedGroup(seat, device).group
    num_held = Topology.even(options.experts, seat.num_ranks).num_held
    measured: list[Measured] = []
    for num_tokens in options.tokens:
        generator = torch.Generator().manual_seed(seat.rank)
        x = torch.randn(num_tokens, options.hidden, generator=generator).to(device, _DTYPE)
        scores = torch.rand(num_tokens, options.experts, generator=generator)
        expert_ids = scores.topk(options.top_k).indices.to(device)
        weights = torch.rand(num_tokens, options.top_k, generator=generator).to(device)
        tokens = (x, expert_ids, weights)  # with equal shares an expert's number is its slot's
        measured += [
            measure(num_held, group, device, tokens, options.wire_dtype)
            for measure in (_all_to_all, _all_gather)
        ]
    if seat.rank == 0:
        lines.put(measured)
    dist.destroy_process_group()


Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _all_to_all(
    num_held: int, group: dist.ProcessGroup, device: torch.device, tokens: Tokens, wire: WireDtype
) -> Measured:
    dispatcher = AllToAllDispatcher(num_held, group, wire)
    dispatch = dispatcher.dispatch(*tokens)
    assert isinstance(dispatch, AllToAllDispatch)
    dispatch.combine(dispatch.rows)
    x, sent, arriving = tokens[0], dispatch.sent_rows, dispatch.arriving_rows
    leaving = pack(*_some(tokens, sum(sent)), wire)
    arrived = leaving.new_empty(sum(arriving), leaving.shape[1])
    back, home = x.new_empty(sum(arriving), x.shape[1]), x.new_empty(sum(sent), x.shape[1])
    counts = torch.ones(group.size(), num_held + 1, dtype=torch.int64, device=device)

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
    num_held: int, group: dist.ProcessGroup, device: torch.device, tokens: Tokens, wire: WireDtype
) -> Measured:
    x = tokens[0]
    dispatcher = AllGatherDispatcher(num_held, group, bucket=len(x), wire=wire)
    leaving = pack(*tokens, wire)
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
    """So many rows of tokens, places and weights, over and over."""
    x, places, weights = tokens
    which = torch.arange(num_rows, device=x.device) % len(x)
    return x[which], places[which], weights[which]


@torch.inference_mode()
def _time_us(call: Callable[[], None], group: dist.ProcessGroup, device: torch.device) -> float:
    """Median of the calls, which all ranks make together."""
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
    parser = Parser(
        prog="python -m jobs.bench.dispatch", description=__doc__, formatter_class=Formatter
    )
    parser.add_argument("--ranks", type=_numbers, default="2,4,8", metavar="R,...", help="ranks")
    parser.add_argument("--tokens", type=_numbers, default="1,32,512", metavar="T,...", help="each")
    parser.add_argument("--hidden", type=positive, default=2048, metavar="D", help="width")
    parser.add_argument("--experts", type=positive, default=64, metavar="E", help="routed")
    parser.add_argument("--top-k", type=positive, default=6, metavar="K", help="of a token")
    parser.add_argument(
        "--wire-dtype", choices=("auto", "bfloat16", "float8"), default="auto", help="of rows"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the ranks")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [positive(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
