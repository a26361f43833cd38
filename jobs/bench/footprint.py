"""What each rank of a group reads from disk and holds in memory, by number of ranks.

    python -m jobs.bench.footprint [--ranks 1,2,4,8] [--layers 3] [--model DIR]

Without --model a checkpoint with random weights is written to a temporary directory: the published
widths of Kimi-VL and its published layout on disk, with fewer layers. Then the first and the last
rank of each group load their share, each in a process of its own, with nothing of the files in the
page cache. Linux only.

weights  bytes of the tensors that the rank has
read     bytes that came from the disk, by /proc/self/io; the kernel reads ahead a little
held     memory beyond what the process had before: anonymous, so without the mapped files
peak     the most of it while loading; the mapped files come on top, and can be dropped any time
"""

import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from jobs.bench.measure.random_files import write_random_checkpoint
from jobs.cli.options import Formatter, Parser, positive
from jobs.planning.shapes import moonlight
from model.config import KimiVLConfig
from model.network.moe import ExpertShard, LocalDispatcher
from model.network.onednn import pack
from model.network.weights import load_model
from parallel.experts.topology import Topology

_LOOK_S = 0.005


@dataclass(frozen=True)
class Footprint:
    """What one rank took."""

    num_ranks: int
    rank: int
    weights_bytes: int
    read_bytes: int
    held_bytes: int
    peak_bytes: int
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; print a table, and a JSON object last."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        checkpoint = options.model
        if checkpoint is None:
            checkpoint = Path(folder)
            print(f"writing {options.layers} layers of random weights ...", flush=True)
            write_random_checkpoint(checkpoint, moonlight(options.layers))
        print("ranks  rank  weights MB  read MB  held MB  peak MB  seconds")
        measured = [_show(each) for each in _measure(checkpoint, options.ranks)]
    print(json.dumps([asdict(each) for each in measured]))
    return 0


def _measure(checkpoint: Path, numbers_of_ranks: Sequence[int]) -> Iterator[Footprint]:
    context = multiprocessing.get_context("spawn")
    for num_ranks in numbers_of_ranks:
        for rank in sorted({0, num_ranks - 1}):
            _drop_from_page_cache(checkpoint)
            answers = context.SimpleQueue()
            process = context.Process(target=_rank, args=(checkpoint, rank, num_ranks, answers))
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(f"rank {rank} of {num_ranks} ended with {process.exitcode}")
            yield answers.get()


def _rank(
    checkpoint: Path, rank: int, num_ranks: int, answers: "multiprocessing.SimpleQueue[Footprint]"
) -> None:
    """Load what one rank holds, as a job would, and tell what it took."""
    torch.set_num_threads(1)
    text = KimiVLConfig.from_checkpoint(checkpoint).text
    held = Topology.even(text.n_routed_experts, num_ranks).held[rank]
    share = ExpertShard(held, LocalDispatcher(text.n_routed_experts))
    held_before, read_before, started = anonymous_bytes(), _read_bytes(), time.monotonic()
    with _peak() as peak:
        model = load_model(checkpoint, shares=lambda _: share)
        weights_bytes = sum(each.nbytes for each in model.parameters())
        pack(model)
    footprint = Footprint(
        num_ranks=num_ranks,
        rank=rank,
        weights_bytes=weights_bytes,
        read_bytes=_read_bytes() - read_before,
        held_bytes=anonymous_bytes() - held_before,
        peak_bytes=peak[0] - held_before,
        seconds=time.monotonic() - started,
    )
    answers.put(footprint)


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The most anonymous memory within the `with`, by looking again and again."""
    most = [anonymous_bytes()]
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(_LOOK_S):
            most[0] = max(most[0], anonymous_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield most
    finally:
        is_over.set()
        watcher.join()
        most[0] = max(most[0], anonymous_bytes())


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs."""
    return _field(Path("/proc/self/status"), "RssAnon") << 10


def _read_bytes() -> int:
    """What this process has made the disk read so far."""
    return _field(Path("/proc/self/io"), "read_bytes")


def _field(file: Path, name: str) -> int:
    lines = (line.partition(":") for line in file.read_text(encoding="ascii").splitlines())
    return next(int(value.split()[0]) for key, _, value in lines if key == name)


def _drop_from_page_cache(checkpoint: Path) -> None:
    for path in checkpoint.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # only what is on disk can be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _show(each: Footprint) -> Footprint:
    sizes = (each.weights_bytes, each.read_bytes, each.held_bytes, each.peak_bytes)
    megabytes = "".join(f"{size / 1e6:9.0f}" for size in sizes)
    print(f"{each.num_ranks:5} {each.rank:5} {megabytes[1:]}  {each.seconds:7.1f}", flush=True)
    return each


def _parser() -> Parser:
    parser = Parser(
        prog="python -m jobs.bench.footprint", description=__doc__, formatter_class=Formatter
    )
    parser.add_argument("--ranks", type=_numbers, default="1,2,4,8", metavar="R,...", help="ranks")
    parser.add_argument("--layers", type=positive, default=3, help="the first of them dense")
    parser.add_argument("--model", type=Path, metavar="DIR", help="instead: a checkpoint")
    return parser


def _numbers(text: str) -> list[int]:
    return [positive(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
