"""Compare the cost model of `jobs.plan` with steps on the CPUs of this machine.

    python -m jobs.bench.cost_model [--layers 3] [--ranks 1,2] [--sequences 8,32]

For each number of ranks, processes that divide the CPUs among them first measure the inputs of the
model, all at the same time: the rate of bare products of a prefill's shapes, the rate of memory
reads, and latency and rate of gloo's all-to-all. Then they compute real steps in lock-step: prompts
of 128 tokens, and decodes after them. The network has the published width, few layers and random
bf16 weights; each rank reads its experts from a checkpoint in the published layout.

Run it while nothing else runs on the machine.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from jobs.bench.command import bench_parser, print_json, print_rows
from jobs.bench.measure.limits import BareProducts, MemoryRead
from jobs.bench.measure.random_files import write_random_checkpoint
from jobs.bench.measure.ranks import run_on_ranks
from jobs.bench.measure.shapes import RandomPrompts, add_all, engine_for
from jobs.bench.measure.turns import timed
from jobs.cli.options import positive, positive_list
from jobs.planning.group_layout import Planner, Rows
from jobs.planning.hardware import Hardware
from jobs.planning.network import Network
from jobs.planning.products import dense_products, expert_products
from jobs.planning.shapes import moonlight
from model.config import KimiVLConfig
from model.network.moe import Shards
from model.network.onednn import prepack
from model.network.weights import load_model
from parallel.experts.policy import Exchange
from parallel.experts.topology import even_topologies
from parallel.ranks.ep_engine import ExpertParallelEngine
from parallel.ranks.lockstep import Lockstep
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.rendezvous import JoinedGroup
from parallel.ranks.step_dispatcher import StepDispatcher
from parallel.ranks.worker import Engine

_PROMPT_LEN, _NUM_PROMPTS = 128, 8
_DECODES, _REPEATS = 12, 5
_STARTING_STEPS = 2  # a rank first announces its prompts, and all ranks begin in the next step
_SMALL_BYTES, _LARGE_BYTES = 1 << 10, 4 << 20


@dataclass(frozen=True)
class Measured:
    """The measurements of one rank."""

    gflops: float
    memory_gbs: float
    latency_us: float
    link_gbs: float
    prefill_ms: float
    decode_ms: Mapping[int, float]  # by number of sequences of a rank


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and predict the steps of each group; return the exit code."""
    parser = bench_parser("jobs.bench.cost_model", __doc__)
    add = parser.add_argument
    add("--layers", type=positive, default=3, metavar="N", help="layers; the first one is dense")
    add("--ranks", type=positive_list, default="1,2", metavar="R,...", help="group sizes")
    help_ = "numbers of sequences that each rank decodes at the same time"
    add("--sequences", type=positive_list, default="8,32", metavar="B,...", help=help_)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        print(f"writing {options.layers} layers of random weights ...", flush=True)
        write_random_checkpoint(Path(folder), moonlight(options.layers))
        rows = print_rows(_rows(Path(folder), options.ranks, options.sequences))
    print_json({"cost_model": rows})
    return 0


def _rows(
    checkpoint: Path, numbers_of_ranks: Sequence[int], sequences: Sequence[int]
) -> Iterator[dict[str, object]]:
    for num_ranks in numbers_of_ranks:
        measured = run_on_ranks(_rank, num_ranks, checkpoint, sequences)
        print(
            f"{num_ranks} ranks: {measured.gflops:.0f} GFLOP/s, {measured.memory_gbs:.1f} GB/s "
            f"of memory, each; all-to-all {measured.latency_us:.0f} us + "
            f"{measured.link_gbs:.2f} GB/s",
            flush=True,
        )
        yield from _compare(checkpoint, num_ranks, measured)


def _compare(checkpoint: Path, num_ranks: int, measured: Measured) -> Iterator[dict[str, object]]:
    hardware = Hardware(
        tflops=measured.gflops / 1e3, memory_gbs=measured.memory_gbs, memory_gib=24,
        link_gbs=measured.link_gbs, net_gbs=measured.link_gbs, link_latency_us=measured.latency_us,
        product_share=1, memory_share=1, link_share=1, launch_us=0,
    )  # fmt: skip
    rows = Rows(
        visual_tokens=0, text_tokens=_PROMPT_LEN, generated_tokens=_DECODES, frame_tokens=256,
        step_tokens=_NUM_PROMPTS * _PROMPT_LEN, most_sequences=max(measured.decode_ms),
        level=1.0, skew=1.0, num_copies=0,
    )  # fmt: skip
    planner = Planner(Network(KimiVLConfig.from_checkpoint(checkpoint)), hardware, rows, num_ranks)
    prefill = planner.prefill_step(num_ranks, rows.step_tokens)
    pairs = [(f"prefill {rows.step_tokens}", prefill, measured.prefill_ms)]
    for number, decode_ms in measured.decode_ms.items():
        pairs.append((f"decode {number}", planner.decode_step(num_ranks, number), decode_ms))
    for name, step, milliseconds in pairs:
        yield {
            "ranks": num_ranks,
            "step": name,
            "predicted_ms": round(1e3 * step.seconds, 1),
            "exchange_ms": round(1e3 * step.exchange_s, 1),
            "measured_ms": round(milliseconds, 1),
            "ratio": round(1e3 * step.seconds / milliseconds, 2),
        }


def _rank(checkpoint: Path, sequences: Sequence[int], spec: RankSpec) -> Measured:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // spec.num_ranks))
    group = JoinedGroup(spec, torch.device("cpu")).group
    config = KimiVLConfig.from_checkpoint(checkpoint)
    gflops, memory_gbs = _product_gflops(config, group), _memory_gbs(group)
    latency_us = 1e6 * _all_to_all_s(group, _SMALL_BYTES)
    large_s = _all_to_all_s(group, _LARGE_BYTES) - latency_us / 1e6
    sent = _LARGE_BYTES * (spec.num_ranks - 1) / spec.num_ranks
    link_gbs = max(sent / large_s / 1e9, 1e-3)
    engine = _engine(checkpoint, config, group, max(*sequences, _NUM_PROMPTS))
    prefill_ms, decode_ms = _steps(engine, config, sequences, group)
    dist.barrier(group=group)
    dist.destroy_process_group()
    return Measured(gflops, memory_gbs, latency_us, link_gbs, prefill_ms, decode_ms)


def _engine(checkpoint: Path, config: KimiVLConfig, group: dist.ProcessGroup, most: int) -> Engine:
    """Make an engine that steps together with the engines of the other ranks."""
    device = torch.device("cpu")
    topologies = even_topologies(config.text, group.size())
    dispatcher = StepDispatcher(topologies, group, device, Exchange())
    shards: Shards | None = dispatcher.shards().__getitem__ if group.size() > 1 else None
    model = load_model(checkpoint, shards=shards)
    prepack(model)
    engine = engine_for(model, most, torch.get_num_threads(), cache_gib=0.5)
    if group.size() == 1:
        return engine
    return ExpertParallelEngine(engine, Lockstep(group, dispatcher.begin), dispatcher)


def _steps(
    engine: Engine, config: KimiVLConfig, sequences: Sequence[int], group: dist.ProcessGroup
) -> tuple[float, dict[int, float]]:
    """Return milliseconds of a prefill and of decodes, medians over steps of all ranks together."""
    prompts = RandomPrompts(config, seed=group.rank())

    def add(number: int, max_tokens: int) -> None:
        add_all(engine, [prompts.text(_PROMPT_LEN) for _ in range(number)], max_tokens)

    def steps(number: int) -> None:
        for _ in range(number):
            engine.step()

    times: list[float] = []
    for _ in range(_REPEATS):
        add(_NUM_PROMPTS, 1)
        times.append(_together(lambda: steps(_STARTING_STEPS), group))
    prefill_ms = 1e3 * statistics.median(times[1:])
    decode_ms: dict[int, float] = {}
    for number in sequences:
        add(number, _DECODES + _STARTING_STEPS)
        steps(_STARTING_STEPS)
        decode_ms[number] = 1e3 * _together(lambda: steps(_DECODES), group) / _DECODES
        steps(_STARTING_STEPS)
    return prefill_ms, decode_ms


def _product_gflops(config: KimiVLConfig, group: dist.ProcessGroup) -> float:
    """Measure bare products of a prefill's shapes, in GFLOP/s."""
    text, num_tokens = config.text, _NUM_PROMPTS * _PROMPT_LEN
    experts = expert_products(text, num_tokens, text.n_routed_experts / group.size())
    products = BareProducts([*dense_products(text, num_tokens), *experts])
    products.seconds()
    dist.barrier(group=group)
    return products.flops / statistics.median(products.seconds() for _ in range(3)) / 1e9


def _memory_gbs(group: dist.ProcessGroup) -> float:
    """Measure memory reads in GB/s, the mean while all ranks read.

    A rank that read alone would be nearly as fast as all together.
    """
    memory = MemoryRead()
    memory.bytes_per_s()
    dist.barrier(group=group)
    return statistics.mean(memory.bytes_per_s(readings=1) for _ in range(8)) / 1e9


def _all_to_all_s(group: dist.ProcessGroup, num_bytes: int) -> float:
    """Measure the seconds of an all-to-all in which each rank sends `num_bytes` in all."""
    sent = torch.zeros(num_bytes, dtype=torch.uint8)
    received = torch.empty_like(sent)

    def exchange() -> None:
        dist.all_to_all_single(received, sent, group=group)

    return statistics.median(_together(exchange, group) for _ in range(30))


def _together(work: Callable[[], object], group: dist.ProcessGroup) -> float:
    """Return the seconds of work that all ranks begin at the same time."""
    dist.barrier(group=group)
    started = time.perf_counter()
    timed(work)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
