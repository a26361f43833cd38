"""Measure what each rank of a group reads from disk and holds in memory, by number of ranks.

    python -m jobs.bench.footprint [--ranks 1,2,4,8] [--layers 3] [--model DIR]

Without --model, the benchmark writes a checkpoint with random weights to a temporary directory: the
published widths of Kimi-VL and its published layout on disk, with fewer layers. Then the first and
the last rank of each group load their experts, each in a process of its own, while nothing of the
files is in the page cache. It runs on Linux only.

weights_mb  bytes of the tensors that the rank has
read_mb     bytes that came from the disk, by /proc/self/io; the kernel reads a little ahead
held_mb     memory beyond what the process had before: anonymous, so without the mapped files
peak_mb     the largest anonymous memory while loading; the mapped files come on top, and the kernel
            can drop them at any time
"""

import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from jobs.bench.command import bench_parser, print_json, print_rows
from jobs.bench.measure.random_files import write_random_checkpoint
from jobs.cli.options import positive, positive_list
from jobs.planning.shapes import moonlight
from model.config import KimiVLConfig
from model.network.moe import ExpertShard, LocalDispatcher
from model.network.onednn import prepack
from model.network.weights import load_model
from parallel.experts.topology import Topology

_SAMPLE_S = 0.005
_MB = 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the ranks of each group and print a table and a JSON object; return the exit code."""
    parser = bench_parser("jobs.bench.footprint", __doc__)
    add = parser.add_argument
    add("--ranks", type=positive_list, default="1,2,4,8", metavar="R,...", help="group sizes")
    add("--layers", type=positive, default=3, help="layers to write; the first one is dense")
    add("--model", type=Path, metavar="DIR", help="use this checkpoint instead of random weights")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        checkpoint = options.model
        if checkpoint is None:
            checkpoint = Path(folder)
            print(f"writing {options.layers} layers of random weights ...", flush=True)
            write_random_checkpoint(checkpoint, moonlight(options.layers))
        print_json({"footprint": print_rows(_measure(checkpoint, options.ranks))})
    return 0


def _measure(checkpoint: Path, numbers_of_ranks: Sequence[int]) -> Iterator[dict[str, float]]:
    for num_ranks in numbers_of_ranks:
        for rank in sorted({0, num_ranks - 1}):
            _drop_from_page_cache(checkpoint)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as process:
                yield process.submit(_load, checkpoint, rank, num_ranks).result()


def _load(checkpoint: Path, rank: int, num_ranks: int) -> dict[str, float]:
    """Load what one rank holds, as a job would, and return its footprint."""
    torch.set_num_threads(1)
    text = KimiVLConfig.from_checkpoint(checkpoint).text
    local_experts = Topology.even(text.n_routed_experts, num_ranks).local_experts[rank]
    shard = ExpertShard(local_experts, LocalDispatcher())
    bytes_before, read_before, started = _anonymous_bytes(), _read_bytes(), time.monotonic()
    with _peak() as peak:
        model = load_model(checkpoint, shards=lambda _: shard)
        weights_bytes = sum(each.nbytes for each in model.parameters())
        prepack(model)
    return {
        "ranks": num_ranks,
        "rank": rank,
        "weights_mb": round(weights_bytes / _MB),
        "read_mb": round((_read_bytes() - read_before) / _MB),
        "held_mb": round((_anonymous_bytes() - bytes_before) / _MB),
        "peak_mb": round((peak[0] - bytes_before) / _MB),
        "seconds": round(time.monotonic() - started, 1),
    }


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Sample the anonymous memory during a `with`; the one item of the list is the largest."""
    most = [_anonymous_bytes()]
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(_SAMPLE_S):
            most[0] = max(most[0], _anonymous_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield most
    finally:
        is_over.set()
        sampler.join()
        most[0] = max(most[0], _anonymous_bytes())


def _anonymous_bytes() -> int:
    return _field(Path("/proc/self/status"), "RssAnon") << 10


def _read_bytes() -> int:
    return _field(Path("/proc/self/io"), "read_bytes")


def _field(file: Path, name: str) -> int:
    lines = (line.partition(":") for line in file.read_text(encoding="ascii").splitlines())
    return next(int(value.split()[0]) for key, _, value in lines if key == name)


def _drop_from_page_cache(checkpoint: Path) -> None:
    for path in checkpoint.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the kernel keeps pages that are not on the disk yet
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
