"""Measure expert parallelism on one machine, against two setups with as many threads.

    one      one engine of R threads
    ranks    one group of R ranks of one thread each
    groups   R groups of one rank of one thread each

All do the same work in turns. Their processes are forks of one host that made the engine, so its
weights are in memory once, besides the experts that are prepacked for each rank. The host uses one
thread and no exchanges, because a fork is unsafe after either.
"""

import itertools
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from statistics import mean, median

import torch

from jobs.bench.cases.rank_process import Process, Spent, shards_of
from jobs.bench.cases.workbench import Sizes, Workbench
from jobs.bench.measure.ranks import rank_specs
from jobs.bench.measure.shapes import engine_for, random_model
from jobs.bench.measure.turns import Turns, by_key
from model.config import KimiVLConfig
from model.malloc import keep_freed_memory
from model.network.onednn import prepack
from parallel.ranks.rank_spec import Address
from parallel.ranks.rendezvous_store import RendezvousStore

_CACHE_GIB = 0.25


Setup = Sequence[Connection]  # to processes that divide a task equally


def measure_ranks(bench: Workbench) -> dict[str, object]:
    """Measure tokens/s of each setup, and the share of a step that ranks exchange.

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
    """Make the weights, fork the processes, measure, and send the results."""
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
    setups = {
        "one": _fork([partial(make, num_threads=num_ranks)]),
        "ranks": _fork([partial(make, num_threads=1, spec=spec, shards=shards) for spec in specs]),
        "groups": _fork([partial(make, num_threads=1)] * num_ranks),
    }
    pipe.send({"ranks": num_ranks, **_prefill(setups, sizes), **_decode(setups, sizes)})
    for pipe in itertools.chain(*setups.values()):
        pipe.send(None)


def _fork(makers: Sequence[Callable[[], Process]]) -> Setup:
    context = multiprocessing.get_context("fork")
    pipes: list[Connection] = []
    for maker in makers:
        ours, theirs = context.Pipe()
        context.Process(target=_serve, args=(maker, theirs), daemon=True).start()
        pipes.append(ours)
    return pipes


def _serve(maker: Callable[[], Process], pipe: Connection) -> None:
    maker().serve(pipe)


def _do(setup: Setup, task: str, number: int) -> list[Spent]:
    """Do a task with `number` prompts or steps in each process of a setup."""
    for pipe in setup:
        pipe.send((task, number))
    return [pipe.recv() for pipe in setup]


def _prefill(setups: Mapping[str, Setup], sizes: Sizes) -> dict[str, object]:
    num_tokens = sizes.prefill_prompts * sizes.prompt_len
    turns, share = _take_turns(setups, sizes.num_rounds, "prefill", sizes.prefill_prompts)
    found = _compare(turns, num_tokens) | {"exchange_share": share}
    return {f"ranks_prefill_{name}": value for name, value in found.items()}


def _decode(setups: Mapping[str, Setup], sizes: Sizes) -> dict[str, object]:
    num_ranks = len(setups["ranks"])
    numbers = [number for number in sizes.num_sequences if number % num_ranks == 0]
    found: dict[int, dict[str, object]] = {}
    for number in numbers:
        for setup in setups.values():
            _do(setup, "fill", number // len(setup))
        turns, share = _take_turns(setups, sizes.num_rounds, "decode", sizes.decode_steps)
        found[number] = _compare(turns, number * sizes.decode_steps) | {"exchange_share": share}
    return {f"ranks_decode_{key}": values for key, values in by_key(found).items()}


def _take_turns(
    setups: Mapping[str, Setup], num_rounds: int, task: str, number: int
) -> tuple[Turns, float]:
    """Return the seconds of each setup by round, without the first, and the share of exchanges."""
    seconds: dict[str, list[float]] = {name: [] for name in setups}
    shares: list[float] = []
    for _ in range(num_rounds + 1):
        for name, setup in setups.items():
            # Steps are those of each process; prompts are divided.
            spent = _do(setup, task, number if task == "decode" else number // len(setup))
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
