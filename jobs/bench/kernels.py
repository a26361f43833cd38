"""What the engine does on a CPU beside what else could be done: the grounds for its choices.

    python -m jobs.bench.kernels            # under a minute on two quiet cores

products    an expert's weights (2816 x 2048 bf16) times few or many rows: as stored, packed once,
            and all experts at once by `torch.nn.functional.grouped_mm`
context     attention of 16 heads to 4,096 cached latents of 576 numbers: the fused kernel on pieces
            of several lengths, and two batched products with a softmax between
gather      the copy of 4,096 such latents out of a cache: by index and by `index_select`
values      absorbed attention's last product (16 heads, 512 to 128), as stored and made contiguous
first use   a product with a number of rows that was never met before, and the second with it

Each number is the best of many tries, so that a disturbed moment does not count. The last line of
the output is one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.bench.measure.turns import timed
from model.malloc import keep_freed_memory
from model.network.attend import attend, attend_plainly
from model.network.onednn import PrepackedMatrix, is_packable

NUM_MATRICES = 24  # 277 MB: more than the caches hold


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table and a JSON object."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.kernels", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--tries", type=int, default=12, help="of which the best counts")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if not is_packable(normal(1, 1)):
        print("this processor has no bfloat16 products of its own: there is nothing to choose")
        return 1
    result: dict[str, object] = {"threads": options.threads}
    for part in (products, context, gather, values, first_use):
        result[part.__name__] = part(options.tries)
    print(json.dumps(result))
    return 0


def products(tries: int) -> dict[int, dict[str, float]]:
    """Gigabytes of weights per second, by number of rows."""
    stored = normal(NUM_MATRICES, 2816, 2048)
    packed = [PrepackedMatrix(weight) for weight in stored]
    rates: dict[int, dict[str, float]] = {}
    for num_rows in (1, 3, 8, 32, 128, 512):
        rows = normal(num_rows, 2048)
        of_all = rows.repeat(NUM_MATRICES, 1)
        ends = torch.arange(1, NUM_MATRICES + 1, dtype=torch.int32) * num_rows
        seconds = {
            "stored": best(tries, lambda x=rows: [F.linear(x, each) for each in stored]),
            "packed": best(tries, lambda x=rows: [each.product(x) for each in packed]),
            "grouped": best(
                tries, lambda x=of_all, e=ends: F.grouped_mm(x, stored.transpose(1, 2), offs=e)
            ),
        }
        rates[num_rows] = {way: round(stored.nbytes / s / 1e9, 1) for way, s in seconds.items()}
        say(f"products, {num_rows} rows, GB/s", rates[num_rows])
    return rates


def context(tries: int) -> dict[str, float]:
    """Milliseconds, by way and length of a piece."""
    took: dict[str, float] = {}
    for length in (128, 256, 512, 1024, 4096):
        memory = normal(4096 // length, 1, length, 576)
        query = normal(len(memory), 1, 16, 576)
        mask = torch.zeros(len(memory), 1, 1, length, dtype=torch.bfloat16)
        for way in (attend, attend_plainly):
            seconds = best(tries, lambda w=way, q=query, m=memory, b=mask: w(q, m, m, 0.1, mask=b))
            took[f"{way.__name__} {length}"] = round(seconds * 1e3, 2)
    say("context, ms", took)
    return took


def gather(tries: int) -> dict[str, float]:
    """Milliseconds, by way."""
    cache = normal(65_536, 576)
    blocks = torch.randperm(4096)[:256, None] * 16
    slots = (blocks + torch.arange(16)).flatten()
    took = {
        "index": best(tries, lambda: cache[slots]) * 1e3,
        "index_select": best(tries, lambda: cache.index_select(0, slots)) * 1e3,
    }
    took = {way: round(each, 2) for way, each in took.items()}
    say("gather, ms", took)
    return took


def values(tries: int) -> dict[str, float]:
    """Milliseconds of one layer, by layout of `kv_b_proj`'s part for values."""
    weights = [normal(16, 256, 512)[:, 128:] for _ in range(8)]
    latent = normal(32, 16, 512)

    def over(layout: Callable[[Tensor], Tensor]) -> float:
        def work() -> None:
            for each in weights:
                torch.einsum("nhc,hvc->nhv", latent, layout(each))

        return round(best(tries, work) / len(weights) * 1e3, 3)

    took = {"stored": over(lambda x: x), "made contiguous": over(lambda x: x.contiguous())}
    say("values, ms", took)
    return took


def first_use(tries: int) -> dict[str, float]:
    """Milliseconds that the first product with a number of rows takes longer than the second."""
    matrix = PrepackedMatrix(normal(2816, 2048))
    longer: list[float] = []
    for num_rows in range(33, 33 + tries):
        again = partial(matrix.product, normal(num_rows, 2048))
        longer.append(timed(again) - best(3, again))
    took = {"longer": round(sorted(longer)[len(longer) // 2] * 1e3, 2)}
    say("first use, ms", took)
    return took


def normal(*shape: int) -> Tensor:
    """Random bfloat16 numbers."""
    return torch.randn(*shape).bfloat16()


def best(tries: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest of some tries, after one that does not count."""
    work()
    return min(timed(work) for _ in range(tries))


def say(what: str, numbers: dict[str, float]) -> None:
    """One line of the table."""
    print(f"{what:28s}" + "".join(f"{way}: {number}  " for way, number in numbers.items()))


if __name__ == "__main__":
    sys.exit(main())
