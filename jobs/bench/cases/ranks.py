"""Expert parallelism on one machine, in three layouts that use as many threads.

    one      one engine of R threads
    ranks    one group of R ranks of one thread each
    groups   R groups of one rank of one thread each

All do the same work in turns. Their processes are forks of one that made the engine, so its weights
are in memory once, beside the experts that are packed for each rank anew. It works with one thread
and keeps out of what forbids a fork: threads of its own, and exchanges.
"""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from statistics import mean, median

import torch

from jobs.bench.cases.rank_process import Process, Spent, shards_of
from jobs.bench.cases.workbench import Sizes, Workbench
from jobs.bench.measure.ranks import rank_specs
from jobs.bench.measure.shapes import engine_for, random_model
from jobs.bench.measure.turns import Turns
from model.config import KimiVLConfig
from model.malloc import keep_freed_memory
from model.network.onednn import prepack
from parallel.ranks.rank_spec import Address
from parallel.ranks.rendezvous_store import RendezvousStore

_CACHE_GIB = 0.25


@dataclass(frozen=True)
class _Processes:
    """Processes that share a task equally."""

    pipes: Sequence[Connection]

    def do(self, task: str, number: int) -> list[Spent]:
        """`number` is of prompts or steps of each process."""
        for pipe in self.pipes:
            pipe.send((task, number))
        return [pipe.recv() for pipe in self.pipes]

    def per_process(self, number: int) -> int:
        """Of a task for all, what each process does."""
        return number // len(self.pipes)


def measure_ranks(bench: Workbench) -> dict[str, object]:
    """Tokens/s of each layout, and what of a step the ranks exchange.

    Raises:
        RuntimeError: a process ended early.
    """
    store = RendezvousStore("127.0.0.1")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, bench.config, bench.num_ranks, bench.sizes, store.address)
    host = context.Process(target=_host, args=arguments)
    host.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError("the process that measures the ranks ended early") from None
    finally:
        host.join()


def _host(
    pipe: Connection, config: KimiVLConfig, num_ranks: int, sizes: Sizes, address: Address
) -> None:
    """Make the weights, fork the processes, measure, and send what was found."""
    torch.set_num_threads(1)
    model = random_model(config)
    shards = shards_of(model, num_ranks)
    for shard in shards:
        prepack(shard)
    prepack(model)
    keep_freed_memory()
    most_sequences = max(*sizes.num_sequences, sizes.prefill_prompts)
    engine = engine_for(model, most_sequences, num_threads=1, cache_gib=_CACHE_GIB)
    make = partial(Process, engine, prompt_len=sizes.prompt_len)
    specs = rank_specs(address, num_ranks)
    layouts = {
        "one": _fork([partial(make, num_threads=num_ranks)]),
        "ranks": _fork([partial(make, num_threads=1, spec=spec, shards=shards) for spec in specs]),
        "groups": _fork([partial(make, num_threads=1)] * num_ranks),
    }
    pipe.send({"ranks": num_ranks, **_prefill(layouts, sizes), **_decode(layouts, sizes)})
    for layout in layouts.values():
        for each in layout.pipes:
            each.send(None)


def _fork(makers: Sequence[Callable[[], Process]]) -> _Processes:
    context = multiprocessing.get_context("fork")
    pipes: list[Connection] = []
    for maker in makers:
        ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(maker, theirs), daemon=True).start()
        pipes.append(ours)
    return _Processes(pipes)


def _serve(maker: Callable[[], Process], pipe: Connection) -> None:
    maker().serve(pipe)


def _prefill(layouts: Mapping[str, _Processes], sizes: Sizes) -> dict[str, object]:
    num_tokens = sizes.prefill_prompts * sizes.prompt_len
    turns, share = _take_turns(layouts, sizes.num_rounds, "prefill", sizes.prefill_prompts)
    found = _compare(turns, num_tokens) | {"exchange_share": share}
    return {f"ranks_prefill_{name}": value for name, value in found.items()}


def _decode(layouts: Mapping[str, _Processes], sizes: Sizes) -> dict[str, object]:
    num_ranks = len(layouts["ranks"].pipes)
    numbers = [number for number in sizes.num_sequences if number % num_ranks == 0]
    found: dict[int, dict[str, object]] = {}
    for number in numbers:
        for layout in layouts.values():
            layout.do("fill", layout.per_process(number))
        turns, share = _take_turns(layouts, sizes.num_rounds, "decode", sizes.decode_steps)
        found[number] = {
            **_compare(turns, number * sizes.decode_steps),
            "exchange_share": share,
        }
    keys = dict.fromkeys(key for each in found.values() for key in each)
    return {f"ranks_decode_{key}": {n: found[n][key] for n in numbers} for key in keys}


def _take_turns(
    layouts: Mapping[str, _Processes], num_rounds: int, task: str, number: int
) -> tuple[Turns, float]:
    """Seconds of each layout in each round, the first left out; share of exchanges in the ranks."""
    seconds: dict[str, list[float]] = {name: [] for name in layouts}
    shares: list[float] = []
    for _ in range(num_rounds + 1):
        for name, layout in layouts.items():
            # Steps are those of each process; prompts are divided.
            each = number if task == "decode" else layout.per_process(number)
            spent = layout.do(task, each)
            seconds[name].append(max(one.seconds for one in spent))
            if name == "ranks":
                shares.append(mean(one.exchange_s / one.seconds for one in spent))
    turns = Turns({name: times[1:] for name, times in seconds.items()})
    return turns, round(median(shares[1:]), 3)


def _compare(turns: Turns, num_tokens: int) -> dict[str, object]:
    rates = {name: round(num_tokens / turns.typical(name), 1) for name in turns.seconds}
    return {
        "tokens_per_s": rates,
        "vs_one": round(turns.quotient("one", "ranks"), 3),
        "vs_groups": round(turns.quotient("groups", "ranks"), 3),
    }
