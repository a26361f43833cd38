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
from jobs.bench.device.rows import measure_rows
from jobs.bench.device.text import measure_decode, measure_eager, measure_prefill
from jobs.bench.measure.shapes import narrow
from jobs.bench.measure.turns import Others
from jobs.planning.shapes import moonlight
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
    is_dry: bool,
) -> int:
    """Measure the parts on the GPU, or on the CPU if the run is dry; return the exit code."""
    if not is_dry and not torch.cuda.is_available():
        reason = "torch sees no GPU on this machine; --dry-run tries this on the CPU"
        print(f"engine: error: {reason}", file=sys.stderr)
        return 2
    device = torch.device("cpu" if is_dry else "cuda")
    try:
        layers = None if is_dry else layers_that_fit(layers, free_bytes(device) / GIB, compares)
    except ValueError as error:
        print(f"engine: error: {error}", file=sys.stderr)
        return 2
    sizes = DRY_SIZES if is_dry else Sizes()
    bench = DeviceBench(
        config=narrow() if layers is None else moonlight(layers),
        device=device,
        compares=compares,
        sizes=sizes if num_sequences is None else replace(sizes, num_sequences=num_sequences),
    )
    measured = _measure_all(parts, bench)
    shape = "narrow" if layers is None else f"moonlight-{layers}l"
    print_json({"shape": shape, "dry_run": is_dry, **measured})
    return 1 if measured["failed"] else 0


def layers_that_fit(layers: int | None, room_gib: float, compares: bool) -> int:
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
