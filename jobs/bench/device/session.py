"""Measure the parts on one device, in order; one that fails does not cost the others."""

import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from jobs.bench.command import print_json, print_value
from jobs.bench.device.bench import DRY_SIZES, GIB, DeviceBench, Sizes, weights_gib
from jobs.bench.device.clock import synchronise
from jobs.bench.device.images import measure_questions, measure_vision
from jobs.bench.device.ranks import measure_ranks
from jobs.bench.device.rows import measure_rows
from jobs.bench.device.text import measure_decode, measure_eager, measure_prefill
from jobs.bench.measure.shapes import narrow
from jobs.bench.measure.turns import Others
from jobs.planning.shapes import moonlight
from model.config import KimiVLConfig
from model.memory import free_bytes

LAYERS = 27  # as published
_LEAST = 2  # of which the first is dense and the other has experts

DEVICE_PARTS: Mapping[str, Callable[[DeviceBench], dict[str, object]]] = {
    "prefill": measure_prefill,
    "decode": measure_decode,
    "eager": measure_eager,
    "vision": measure_vision,
    "questions": measure_questions,
    "rows": measure_rows,
}


def measure_device(
    parts: Sequence[str],
    *,
    layers: int | None,
    num_sequences: tuple[int, ...] | None,
    compares: bool,
    num_ranks: int | None,
    is_dry: bool,
) -> int:
    """Measure the parts on the GPU, or on the CPU if the run is dry; return the exit code.

    With `num_ranks` so many GPUs are measured together, and no parts.
    """
    try:
        layers = None if is_dry else _layers_here(layers, compares, num_ranks or 1)
    except ValueError as error:
        print(f"engine: error: {error}", file=sys.stderr)
        return 2
    sizes = DRY_SIZES if is_dry else Sizes()
    if num_sequences is not None:
        sizes = replace(sizes, num_sequences=num_sequences)
    config = narrow() if layers is None else moonlight(layers)
    shape = "narrow" if layers is None else f"moonlight-{layers}l"
    if num_ranks is None:
        device = torch.device("cpu" if is_dry else "cuda")
        bench = DeviceBench(config=config, device=device, compares=compares, sizes=sizes)
        measured = _measure_all(parts, bench)
    else:
        measured = _measure_ranks(config, sizes, num_ranks, is_dry=is_dry)
    print_json({"shape": shape, "dry_run": is_dry, **measured})
    return 1 if measured.get("failed") else 0


def _layers_here(layers: int | None, compares: bool, num_ranks: int) -> int:
    """Return the layers to measure; raise ValueError if these GPUs are not here, or too small."""
    if not torch.cuda.is_available():
        raise ValueError("torch sees no GPU on this machine; --dry-run tries this on the CPU")
    if num_ranks > torch.cuda.device_count():
        raise ValueError(f"{num_ranks} ranks need as many GPUs, not {torch.cuda.device_count()}")
    room_gib = free_bytes(torch.device("cuda")) / GIB
    return layers_that_fit(layers, num_ranks * room_gib, compares=compares)


def layers_that_fit(layers: int | None, room_gib: float, *, compares: bool) -> int:
    """Return the layers to measure; a comparison takes fewer if two copies do not fit.

    Raises ValueError, which proposes a number: the network does not fit.
    """
    wanted = layers or LAYERS
    alone, twice = (_most_layers(room_gib, copies) for copies in (1, 2))
    if alone < wanted:
        proposal = f"--layers {alone} fits" if alone >= _LEAST else f"not even {_LEAST} layers fit"
        raise ValueError(
            f"{wanted} layers take {weights_gib(moonlight(wanted), 1):.0f} GiB with the engine, "
            f"and {room_gib:.0f} are free; {proposal}"
        )
    if compares and twice < wanted:
        if twice < _LEAST:
            raise ValueError(f"--compare needs two copies, and {room_gib:.0f} GiB are free")
        print(f"two copies of {wanted} layers do not fit, so both have {twice} layers")
        return twice
    return wanted


def _most_layers(room_gib: float, num_copies: int) -> int:
    """Return how many layers fit; all but the first one are equally large."""
    least, next_ = (weights_gib(moonlight(n), num_copies) for n in (_LEAST, _LEAST + 1))
    return _LEAST + math.floor((room_gib - least) / (next_ - least))


def _measure_ranks(
    config: KimiVLConfig, sizes: Sizes, num_ranks: int, *, is_dry: bool
) -> dict[str, object]:
    found = {
        "device": "cpu" if is_dry else "cuda",
        "torch": torch.__version__,
        "layers": config.text.num_hidden_layers,
        **measure_ranks(config, sizes, num_ranks, is_dry=is_dry),
    }
    for name, value in found.items():
        print_value(name, value)
    return found


def _about(bench: DeviceBench) -> dict[str, object]:
    """Make the network; return what is measured where, with the first look at the limits."""
    started = time.perf_counter()
    _ = bench.model  # outside of inference mode, as an engine loads it
    synchronise(bench.device)
    took_s = time.perf_counter() - started
    bench.card.flops_per_s()
    bench.card.bytes_per_s()
    is_gpu = bench.device.type == "cuda"
    memory = torch.cuda.get_device_properties(bench.device).total_memory if is_gpu else 0
    return {
        "device": bench.device.type,
        "card": bench.card.name,
        "memory_gib": round(memory / GIB, 1) if is_gpu else None,
        "torch": torch.__version__,
        "layers": bench.config.text.num_hidden_layers,
        "parameters": bench.network.num_parameters,
        "weights_made_s": round(took_s, 1),
    }


def _measure_all(parts: Sequence[str], bench: DeviceBench) -> dict[str, object]:
    about = _about(bench)
    for name, value in {**about, **bench.card.limits()}.items():
        print_value(name, value)
    measured: dict[str, object] = {}
    failed: dict[str, str] = {}
    shares: dict[str, float] = {}
    for part in parts:
        print(f"{part} ...", flush=True)
        started, others = time.perf_counter(), Others()
        try:
            found = DEVICE_PARTS[part](bench)
        except Exception as error:  # noqa: BLE001 the other parts are worth having
            traceback.print_exc()
            failed[part] = f"{type(error).__name__}: {error}"
            continue
        shares[part] = round(others.share(), 3)
        for name, value in found.items():
            print_value(f"  {name}", value)
        print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
        measured |= found
    ends = {"skipped": bench.skipped, "failed": failed, "others_share": shares}
    return {**about, **bench.card.limits(), **measured, **ends}
