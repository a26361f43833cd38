"""Compare the CPU kernels that the engine uses with the alternatives, to justify its choices.

    python -m jobs.bench.kernels            # under a minute on two quiet cores

products    an expert's weights (2816 x 2048 bf16) times few or many rows: as stored, prepacked
            once, and all experts at once by `torch.nn.functional.grouped_mm`
context     attention of 16 heads to 4,096 cached latents of 576 numbers: the fused kernel on pieces
            of several lengths, and two batched products with a softmax between them
gather      the copy of 4,096 such latents out of a cache: by index and by `index_select`
values      the last product of absorbed attention (16 heads, 512 to 128), as stored and made
            contiguous
first use   a product with a number of rows that was never used before, and the second with it

Each number is the best of many tries, so that a disturbed moment does not count. The last line of
the output is one JSON object.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.bench.command import bench_parser, print_json, print_value
from jobs.bench.measure.turns import timed
from model.malloc import keep_freed_memory
from model.network.attend import attend, attend_plainly
from model.network.onednn import PrepackedMatrix, is_prepackable

NUM_MATRICES = 24  # 277 MB: more than the caches of the processor hold


def main(arguments: list[str] | None = None) -> int:
    """Measure all kernels and print a table and a JSON object; return the exit code."""
    parser = bench_parser("jobs.bench.kernels", __doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--tries", type=int, default=12, help="tries, of which the best counts")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if not is_prepackable(normal(1, 1)):
        print("this processor has no bfloat16 instructions, so there is nothing to choose between")
        return 1
    result: dict[str, object] = {"threads": options.threads}
    for measure in (products, context, gather, values, first_use):
        result[measure.__name__] = measure(options.tries)
    print_json(result)
    return 0


def products(tries: int) -> dict[int, dict[str, float]]:
    """Measure gigabytes of weights per second, by number of rows."""
    stored = normal(NUM_MATRICES, 2816, 2048)
    prepacked = [PrepackedMatrix(weight) for weight in stored]
    rates: dict[int, dict[str, float]] = {}
    for num_rows in (1, 3, 8, 32, 128, 512):
        rows = normal(num_rows, 2048)
        rows_of_all = rows.repeat(NUM_MATRICES, 1)
        ends = torch.arange(1, NUM_MATRICES + 1, dtype=torch.int32) * num_rows
        seconds = {
            "stored": best(tries, lambda x=rows: [F.linear(x, each) for each in stored]),
            "packed": best(tries, lambda x=rows: [each.product(x) for each in prepacked]),
            "grouped": best(
                tries, lambda x=rows_of_all, e=ends: F.grouped_mm(x, stored.transpose(1, 2), offs=e)
            ),
        }
        rates[num_rows] = {way: round(stored.nbytes / s / 1e9, 1) for way, s in seconds.items()}
        print_value(f"products, {num_rows} rows, GB/s", rates[num_rows])
    return rates


def context(tries: int) -> dict[str, float]:
    """Measure milliseconds of attention, by kernel and length of a piece."""
    milliseconds: dict[str, float] = {}
    for length in (128, 256, 512, 1024, 4096):
        latents = normal(4096 // length, 1, length, 576)
        query = normal(len(latents), 1, 16, 576)
        mask = torch.zeros(len(latents), 1, 1, length, dtype=torch.bfloat16)
        for way in (attend, attend_plainly):
            seconds = best(
                tries, lambda w=way, q=query, kv=latents, b=mask: w(q, kv, kv, 0.1, mask=b)
            )
            milliseconds[f"{way.__name__} {length}"] = round(seconds * 1e3, 2)
    print_value("context, ms", milliseconds)
    return milliseconds


def gather(tries: int) -> dict[str, float]:
    """Measure milliseconds of a copy out of the cache, by method."""
    cache = normal(65_536, 576)
    blocks = torch.randperm(4096)[:256, None] * 16
    slots = (blocks + torch.arange(16)).flatten()
    milliseconds = {
        "index": round(best(tries, lambda: cache[slots]) * 1e3, 2),
        "index_select": round(best(tries, lambda: cache.index_select(0, slots)) * 1e3, 2),
    }
    print_value("gather, ms", milliseconds)
    return milliseconds


def values(tries: int) -> dict[str, float]:
    """Measure milliseconds per layer, by memory layout of the value rows of `kv_b_proj`."""
    weights = [normal(16, 256, 512)[:, 128:] for _ in range(8)]
    latent = normal(32, 16, 512)

    def over(layout: Callable[[Tensor], Tensor]) -> float:
        def work() -> None:
            for each in weights:
                torch.einsum("nhc,hvc->nhv", latent, layout(each))

        return round(best(tries, work) / len(weights) * 1e3, 3)

    milliseconds = {"stored": over(lambda x: x), "made contiguous": over(lambda x: x.contiguous())}
    print_value("values, ms", milliseconds)
    return milliseconds


def first_use(tries: int) -> dict[str, float]:
    """Measure by how many milliseconds the first product with a number of rows is slower."""
    matrix = PrepackedMatrix(normal(2816, 2048))
    longer: list[float] = []
    for num_rows in range(33, 33 + tries):
        again = partial(matrix.product, normal(num_rows, 2048))
        longer.append(timed(again) - best(3, again))
    milliseconds = {"longer": round(sorted(longer)[len(longer) // 2] * 1e3, 2)}
    print_value("first use, ms", milliseconds)
    return milliseconds


def normal(*shape: int) -> Tensor:
    """Draw random bfloat16 numbers."""
    return torch.randn(*shape).bfloat16()


def best(tries: int, work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of some tries, after one that does not count."""
    work()
    return min(timed(work) for _ in range(tries))


if __name__ == "__main__":
    sys.exit(main())
